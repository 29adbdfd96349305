// webernetes is built for bundlers: its modules import each other without file extensions.
export async function resolve(specifier, context, next) {
  try {
    return await next(specifier, context);
  } catch (error) {
    if (!specifier.startsWith(".")) throw error;
    return next(`${specifier}.js`, context).catch(() => next(`${specifier}/index.js`, context));
  }
}
