// Serves the Kubernetes of @ngrok/webernetes over HTTP, as far as Deployments, Pods and Jobs need it.
//
//   node server.mjs FOLDER TOKEN
//
// FOLDER holds node_modules; TOKEN is what clients must send. The port is printed once it listens,
// and the server ends with its standard input, as do the programs of its pods. What a client may do
// is what the rules of POST /role allow, as a Role has them; without them, all that there is.
//
// Beyond Kubernetes there is GET /started: the command line of every optimizer that a pod has
// started. GET /processes: the process of each pod of the image program:1.0, which runs its command
// on this machine. And POST /says/POD, with what the kubelet of a pod is to say of its containers:
// none here runs out of memory.

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import { register } from "node:module";
import { constants } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, token] = process.argv.slice(2);

register("./extensions.mjs", import.meta.url);
const library = join(folder, "node_modules/@ngrok/webernetes/dist/index.js");
const { BaseImage, Cluster } = await import(pathToFileURL(library));

const started = [];
const said = new Map();
const running = new Map(); // by pod, the process of its program
const logs = new Map(); // by pod
let rules; // of the client's role; undefined: it may do everything

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

// Runs the command of its container as a process that has the container's variables and no others.
class Program extends BaseImage {
  static imageName = "program";
  static imageVersion = "1.0";

  async exec({ pod, env }, [command, ...args]) {
    const stdio = ["ignore", "pipe", "pipe"];
    const child = spawn(command, args, { env: Object.fromEntries(env), stdio });
    running.set(pod.name, child);
    logs.set(pod.name, "");
    for (const stream of [child.stdout, child.stderr]) {
      stream.on("data", (text) => logs.set(pod.name, logs.get(pod.name) + text));
    }
    const [code, signal] = await once(child, "close");
    if (running.get(pod.name) === child) running.delete(pod.name);
    return code ?? 128 + constants.signals[signal];
  }

  signalHandler({ pod }, signal) {
    running.get(pod.name)?.kill(signal);
  }
}

process.on("exit", () => running.forEach((child) => child.kill("SIGKILL")));

const cluster = new Cluster({ nodes: 1 });
for (const image of [Optimizer, Crashing, Program]) cluster.registerImage(image);
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

const isDryRun = (query) => query.get("dryRun") === "All";

const taken = (kind, name) =>
  new Refused(409, "AlreadyExists", `${kind} "${name}" already exists`);

// A rule of the API server that webernetes leaves out.
function checkLabels(kind, name, labels) {
  for (const value of Object.values(labels ?? {})) {
    if (value.length > 63 || !/^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$/.test(value)) {
      throw new Refused(422, "Invalid", `${kind} "${name}" is invalid: labels: "${value}"`);
    }
  }
}

async function unlessTaken(kind, body, created) {
  try {
    return await created;
  } catch (error) {
    if (!/already exists/.test(error.message)) throw error;
    throw taken(kind, body.metadata?.name);
  }
}

async function createDeployment(body, namespace) {
  checkLabels("Deployment.apps", body.metadata?.name, body.spec?.template?.metadata?.labels);
  const created = appsv1.createNamespacedDeployment({ namespace, body });
  return await unlessTaken("deployments.apps", body, created);
}

async function createPod(body, namespace, query) {
  checkLabels("Pod", body.metadata?.name, body.metadata?.labels);
  if (isDryRun(query)) return (await corev1.readNamespace({ name: namespace })) && body;
  return await unlessTaken("pods", body, corev1.createNamespacedPod({ namespace, body }));
}

function withSaid(pod) {
  const found = structuredClone(pod);
  Object.assign((found.status ??= {}), said.get(pod.metadata.name));
  return found;
}

async function listPods(namespace, query) {
  const labelSelector = query.get("labelSelector") ?? undefined;
  const found = await corev1.listNamespacedPod({ namespace, labelSelector });
  return { ...found, items: found.items.map(withSaid) };
}

function readLog(name, query) {
  const lines = (logs.get(name) ?? "").split(/(?<=\n)/);
  return lines.slice(-Number(query.get("tailLines") ?? lines.length)).join("");
}

// Jobs, which webernetes does not have, as far as a worker needs them: one pod, a condition when
// that is over, and a deletion that waits for it.
const jobs = new Map();

async function podsOf({ metadata: { name, namespace } }) {
  const labelSelector = `batch.kubernetes.io/job-name=${name}`;
  return (await corev1.listNamespacedPod({ namespace, labelSelector })).items.map(withSaid);
}

async function createJob(body, namespace, query) {
  const { name } = body.metadata;
  checkLabels("Job.batch", name, body.metadata.labels);
  await corev1.readNamespace({ name: namespace });
  if (jobs.has(`${namespace}/${name}`)) throw taken("jobs.batch", name);
  const own = { namespace, uid: randomUUID(), creationTimestamp: new Date() };
  const job = { ...body, metadata: { ...body.metadata, ...own }, status: {} };
  if (isDryRun(query)) return job;
  const { metadata, spec } = structuredClone(body.spec.template);
  const labels = { ...metadata?.labels, "batch.kubernetes.io/job-name": name };
  const pod = { metadata: { ...metadata, labels, generateName: `${name}-` }, spec };
  await corev1.createNamespacedPod({ namespace, body: pod });
  jobs.set(`${namespace}/${name}`, job);
  return job;
}

async function readJob(namespace, name) {
  const job = jobs.get(`${namespace}/${name}`);
  const pods = job ? await podsOf(job) : [];
  if (job?.metadata.deletionTimestamp && pods.length === 0) jobs.delete(`${namespace}/${name}`);
  if (!jobs.has(`${namespace}/${name}`)) {
    throw new Refused(404, "NotFound", `jobs.batch "${name}" not found`);
  }
  const ends = new Set(pods.map((pod) => pod.status.phase));
  const type = ends.has("Succeeded") ? "Complete" : ends.has("Failed") ? "Failed" : undefined;
  return { ...job, status: { conditions: type ? [{ type, status: "True" }] : [] } };
}

async function deleteJob(body, namespace, name) {
  const job = await readJob(namespace, name);
  const uid = body?.preconditions?.uid;
  if (uid && uid !== job.metadata.uid) {
    throw new Refused(409, "Conflict", `the UID in the precondition (${uid}) does not match`);
  }
  jobs.get(`${namespace}/${name}`).metadata.deletionTimestamp ??= new Date();
  for (const pod of await podsOf(job)) {
    await corev1.deleteNamespacedPod({ namespace, name: pod.metadata.name });
  }
  return job;
}

const allows = (verb, group, resource) =>
  !rules ||
  rules.some(
    (rule) =>
      rule.apiGroups.includes(group) &&
      rule.resources.includes(resource) &&
      rule.verbs.includes(verb),
  );

function review(body) {
  const { verb, group = "", resource, subresource } = body.spec.resourceAttributes;
  const of = subresource ? `${resource}/${subresource}` : resource;
  return { ...body, status: { allowed: allows(verb, group, of) } };
}

const under = (api, rest) => new RegExp(`^${api}/namespaces/([^/]+)/${rest}$`);
const deployments = ["apps", "deployments"];
const pods = ["", "pods"];
const batch = ["batch", "jobs"];

// Method, path, what is needed to be allowed to (verb, group and resource), what is done, status.
const routes = [
  ["POST", under("/apis/apps/v1", "deployments"), ["create", ...deployments], createDeployment, 201],
  [
    "GET",
    under("/apis/apps/v1", "deployments"),
    ["list", ...deployments],
    (_, namespace) => appsv1.listNamespacedDeployment({ namespace }),
  ],
  [
    "GET",
    under("/apis/apps/v1", "deployments/([^/]+)"),
    ["get", ...deployments],
    (_, namespace, name) => appsv1.readNamespacedDeployment({ namespace, name }),
  ],
  [
    "DELETE",
    under("/apis/apps/v1", "deployments/([^/]+)"),
    ["delete", ...deployments],
    (body, namespace, name) => appsv1.deleteNamespacedDeployment({ namespace, name, body }),
  ],
  ["POST", under("/api/v1", "pods"), ["create", ...pods], createPod, 201],
  [
    "GET",
    under("/api/v1", "pods"),
    ["list", ...pods],
    (_, namespace, query) => listPods(namespace, query),
  ],
  [
    "GET",
    under("/api/v1", "pods/([^/]+)"),
    ["get", ...pods],
    async (_, namespace, name) => withSaid(await corev1.readNamespacedPod({ namespace, name })),
  ],
  [
    "GET",
    under("/api/v1", "pods/([^/]+)/log"),
    ["get", "", "pods/log"],
    (_, _namespace, name, query) => readLog(name, query),
  ],
  [
    "DELETE",
    under("/api/v1", "pods/([^/]+)"),
    ["delete", ...pods],
    (body, namespace, name) => corev1.deleteNamespacedPod({ namespace, name, body }),
  ],
  ["POST", under("/apis/batch/v1", "jobs"), ["create", ...batch], createJob, 201],
  [
    "GET",
    under("/apis/batch/v1", "jobs/([^/]+)"),
    ["get", ...batch],
    (_, namespace, name) => readJob(namespace, name),
  ],
  ["DELETE", under("/apis/batch/v1", "jobs/([^/]+)"), ["delete", ...batch], deleteJob],
  ["POST", /^\/apis\/authorization.k8s.io\/v1\/selfsubjectaccessreviews$/, null, review, 201],
  ["POST", /^\/role$/, null, (body) => (rules = body) && {}],
  ["POST", /^\/says\/([^/]+)$/, null, (body, name) => said.set(name, body) && {}],
  ["GET", /^\/started$/, null, () => started],
  [
    "GET",
    /^\/processes$/,
    null,
    () => Object.fromEntries([...running].map(([pod, child]) => [pod, child.pid])),
  ],
];

async function answer(request, body) {
  if (request.headers.authorization !== `Bearer ${token}`) {
    throw new Refused(401, "Unauthorized", "Unauthorized");
  }
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  for (const [method, pattern, needed, act, code = 200] of routes) {
    const match = pattern.exec(pathname);
    if (match && request.method === method) {
      if (needed && !allows(...needed)) break;
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
  const isText = typeof result[1] === "string";
  response.writeHead(result[0], { "Content-Type": isText ? "text/plain" : "application/json" });
  response.end(isText ? result[1] : JSON.stringify(result[1]));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));

process.stdin.resume().on("end", () => process.exit(0));
