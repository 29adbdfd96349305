// Serves the Kubernetes of @ngrok/webernetes over HTTP, as far as Deployments need it.
//
//   node server.mjs FOLDER TOKEN
//
// FOLDER holds node_modules; TOKEN is what clients must send. The port is printed once it listens,
// and the server ends with its standard input. What a client may do is what the role in Amoro's
// Helm chart allows: get, list, create and delete. Beyond Kubernetes there is GET /started: the
// command line of every optimizer that a pod has started. And POST /says/POD, with what the kubelet
// of a pod is to say of its containers: none here runs out of memory.

import { createServer } from "node:http";
import { register } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, token] = process.argv.slice(2);

register("./extensions.mjs", import.meta.url);
const library = join(folder, "node_modules/@ngrok/webernetes/dist/index.js");
const { BaseImage, Cluster } = await import(pathToFileURL(library));

const started = [];
const said = new Map();

class Optimizer extends BaseImage {
  static imageName = "apache/amoro";
  static imageVersion = "0.9";

  async exec(context, argv) {
    started.push(argv);
    return context.waitUntilKilled();
  }
}

class Crashing extends BaseImage {
  static imageName = "apache/amoro";
  static imageVersion = "crashing";

  async exec() {
    return 1;
  }
}

const cluster = new Cluster({ nodes: 1 });
cluster.registerImage(Optimizer);
cluster.registerImage(Crashing);
await cluster.init();
const { appsv1, corev1 } = cluster.api;
await corev1.createNamespace({ body: { metadata: { name: "amoro" } } });

class Refused extends Error {
  constructor(code, reason, message) {
    super(message);
    this.code = code;
    this.body = { apiVersion: "v1", kind: "Status", status: "Failure", message, reason, code };
  }
}

// A rule of the API server that webernetes leaves out.
function checkLabels(name, labels) {
  for (const value of Object.values(labels ?? {})) {
    if (value.length > 63 || !/^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$/.test(value)) {
      const field = "spec.template.labels: Invalid value";
      throw new Refused(422, "Invalid", `Deployment.apps "${name}" is invalid: ${field}: "${value}"`);
    }
  }
}

async function create(namespace, body) {
  const name = body.metadata?.name;
  checkLabels(name, body.spec?.template?.metadata?.labels);
  try {
    return await appsv1.createNamespacedDeployment({ namespace, body });
  } catch (error) {
    if (!/already exists/.test(error.message)) throw error;
    throw new Refused(409, "AlreadyExists", `deployments.apps "${name}" already exists`);
  }
}

async function listPods(namespace, query) {
  const labelSelector = query.get("labelSelector") ?? undefined;
  const found = structuredClone(await corev1.listNamespacedPod({ namespace, labelSelector }));
  for (const pod of found.items) Object.assign(pod.status, said.get(pod.metadata.name));
  return found;
}

const deployments = /^\/apis\/apps\/v1\/namespaces\/([^/]+)\/deployments$/;
const deployment = /^\/apis\/apps\/v1\/namespaces\/([^/]+)\/deployments\/([^/]+)$/;
const pods = /^\/api\/v1\/namespaces\/([^/]+)\/pods$/;

const routes = [
  ["POST", deployments, (body, namespace) => create(namespace, body), 201],
  ["GET", deployments, (_, namespace) => appsv1.listNamespacedDeployment({ namespace })],
  ["GET", deployment, (_, namespace, name) => appsv1.readNamespacedDeployment({ namespace, name })],
  [
    "DELETE",
    deployment,
    (body, namespace, name) => appsv1.deleteNamespacedDeployment({ namespace, name, body }),
  ],
  ["GET", pods, (_, namespace, query) => listPods(namespace, query)],
  ["POST", /^\/says\/([^/]+)$/, (body, name) => said.set(name, body) && {}],
  ["GET", /^\/started$/, () => started],
];

async function answer(request, body) {
  if (request.headers.authorization !== `Bearer ${token}`) {
    throw new Refused(401, "Unauthorized", "Unauthorized");
  }
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  for (const [method, pattern, act, code = 200] of routes) {
    const match = pattern.exec(pathname);
    if (match && request.method === method) {
      return [code, await act(body, ...match.slice(1).map(decodeURIComponent), searchParams)];
    }
  }
  throw new Refused(403, "Forbidden", `${request.method} ${pathname} is forbidden`);
}

const server = createServer(async (request, response) => {
  let result;
  try {
    const chunks = await request.toArray();
    const text = Buffer.concat(chunks).toString();
    result = await answer(request, text ? JSON.parse(text) : undefined);
  } catch (error) {
    result = [error.code ?? 500, error.body ?? { kind: "Status", message: String(error) }];
  }
  response.writeHead(result[0], { "Content-Type": "application/json" });
  response.end(JSON.stringify(result[1]));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));

process.stdin.resume().on("end", () => process.exit(0));
