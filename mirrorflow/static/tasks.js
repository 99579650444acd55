// Background work and the servers that do it, live.

import { ask, send } from "./ask.js";
import { ago, length, number } from "./words.js";

const MOST = 6; // tasks on the page: those that have not ended come first
const SLOTS_EVERY_MS = 2000; // servers are asked again at most this often while tasks move

const TASK = `fragment Task on Task {
  id
  type
  name
  status
  message
  total
  done
  failed
  canceled
  expanded
  rate
  estimatedEnd
  createdAt
  startedAt
  completedAt
  changeSeq
  error { message }
  viewerCanCancel
  viewerCanRetry
}`;
const SERVER = `fragment Server on Server { id name type url enabled status batchSize running lastError }`;
const TASKS = `query Tasks {
  tasks(first: ${MOST}, orderBy: CHANGED_DESC) { nodes { ...Task } }
}
${TASK}`;
const TASKS_UPDATED = `subscription TasksUpdated($after: BigInt) {
  tasksUpdated(after: $after) { ...Task }
}
${TASK}`;
const SERVERS = `query Servers {
  servers(first: 50) { nodes { ...Server } }
}
${SERVER}`;
const SERVERS_UPDATED = `subscription ServersUpdated {
  serverUpdated { ...Server }
}
${SERVER}`;
const CANCEL = `mutation Cancel($id: ID!) {
  taskCancel(input: { id: $id }) { __typename ... on UserError { message } }
}`;
const RETRY = `mutation Retry($id: ID!) {
  taskItemsRetry(input: { task: $id }) { __typename ... on UserError { message } }
}`;

const $ = (id) => document.getElementById(id);
const tasks = new Map(); // id → { task, row }
const servers = new Map(); // id → server
let after = null; // the newest change that was seen
let asked = 0;

const ended = ({ status }) => ["COMPLETED", "FAILED", "CANCELED"].includes(status);

// ---- one task ----

function put(task) {
  const known = tasks.get(task.id);
  if (known && known.task.changeSeq > task.changeSeq) return;
  const row = known?.row ?? $("task").content.firstElementChild.cloneNode(true);
  tasks.set(task.id, { task, row });
  after = Math.max(after, task.changeSeq);
  const part = (name) => row.querySelector(`.${name}`);
  row.dataset.status = task.status;
  part("status").textContent = task.status;
  part("name").textContent = part("name").title = task.name;
  part("version").textContent = task.type;
  part("id").textContent = task.id;
  part("since").dateTime = task.createdAt;
  part("since").title = new Date(task.createdAt).toLocaleString();
  part("cancel").hidden = !task.viewerCanCancel;
  part("retry").hidden = !task.viewerCanRetry;
  part("retry").textContent = `Retry ${number(task.failed)}`;
  part("error").hidden = task.error === null;
  if (task.error) part("error").textContent = task.error.message;
  showBar(part("bar"), task);
  if (!known) {
    part("cancel").addEventListener("click", ({ target }) => send(target, CANCEL, { id: task.id }));
    part("retry").addEventListener("click", ({ target }) => send(target, RETRY, { id: task.id }));
  }
}

function showBar(bar, { total, done, failed, canceled, expanded, status }) {
  bar.ariaValueMax = total;
  bar.ariaValueNow = done + failed + canceled;
  const open = status === "RUNNING" ? total - done - failed - canceled : 0;
  // While folders are looked through the whole is not known: what is found so far counts for nine tenths at most.
  const whole = expanded ? total : Math.ceil(total / 0.9);
  const parts = { completed: done, failed, skipped: canceled, running: Math.min(open, Math.ceil(whole / 50)) };
  for (const [name, count] of Object.entries(parts)) {
    bar.querySelector(`.${name}`).style.width = `${whole ? (100 * count) / whole : 0}%`;
  }
}

function showTimes({ task, row }, now) {
  const parts = [`${number(task.done)} of ${number(task.total)}${task.expanded ? "" : " found so far"}`];
  if (task.failed) parts.push(`${number(task.failed)} failed`);
  if (task.canceled) parts.push(`${number(task.canceled)} stopped`);
  if (task.status === "RUNNING" && task.rate) parts.push(`${task.rate.toPrecision(2)} a second`);
  if (task.status === "RUNNING" && task.estimatedEnd) parts.push(`${length(Math.max(0, new Date(task.estimatedEnd) - now))} left`);
  // The engine's own sentence, unless it only counts as this line does.
  if (task.message && !/^[\d,]+ of [\d,]+ done[^.]*\.$/.test(task.message)) parts.push(task.message);
  row.querySelector(".counts").textContent = parts.join(" · ");
  row.querySelector(".since").textContent = ago(now - new Date(task.createdAt));
  const end = task.completedAt ? new Date(task.completedAt) : now;
  row.querySelector(".duration").textContent = task.startedAt ? length(end - new Date(task.startedAt)) : "waiting";
}

/** What has not ended first, then the newest; the rest is left out. */
function order() {
  const all = [...tasks.values()].sort(
    ({ task: a }, { task: b }) => ended(a) - ended(b) || (a.id < b.id ? 1 : -1),
  );
  for (const { task } of all.splice(MOST)) tasks.delete(task.id);
  const rows = all.map(({ row }) => row);
  const shown = [...$("tasks").children];
  if (rows.length !== shown.length || rows.some((row, index) => row !== shown[index])) $("tasks").replaceChildren(...rows);
  $("tasks-part").hidden = rows.length === 0;
  tick();
}

/** Times go on while nothing happens. */
export function tick() {
  const now = Date.now();
  for (const shown of tasks.values()) showTimes(shown, now);
}

// ---- servers ----

function showServers() {
  const rows = [...servers.values()].sort((a, b) => (a.name < b.name ? -1 : 1)).map((server) => {
    const item = document.createElement("li");
    item.title = [server.url, server.lastError].filter(Boolean).join("\n");
    const state = Object.assign(document.createElement("span"), { textContent: server.enabled ? server.status : "DISABLED" });
    state.dataset.state = state.textContent;
    const name = Object.assign(document.createElement("strong"), { textContent: server.name });
    const slots = Object.assign(document.createElement("p"), {
      textContent: `${server.type.toLowerCase()} · ${number(server.running)} of ${number(server.batchSize)} at work`,
    });
    item.append(state, name, slots);
    return item;
  });
  $("servers").replaceChildren(...rows);
  $("servers-part").hidden = rows.length === 0;
}

function countSlots() {
  const now = Date.now();
  if (asked > now) return; // asked already, or about to
  asked = now + SLOTS_EVERY_MS;
  setTimeout(async () => {
    const { servers: found } = await ask(SERVERS).catch(() => ({ servers: { nodes: [] } }));
    for (const server of found.nodes) servers.set(server.id, server);
    showServers();
  }, SLOTS_EVERY_MS);
}

// ---- the streams ----

/** Reads what there is; gives the streams that keep it up to date. */
export async function background() {
  const found = await ask(TASKS).catch(() => null); // whoever may not see tasks
  if (found) {
    after = 0;
    found.tasks.nodes.forEach(put);
    order();
  }
  return [
    {
      query: TASKS_UPDATED,
      optional: true,
      variables: () => ({ after }),
      next: ({ tasksUpdated }) => {
        put(tasksUpdated);
        order();
        countSlots();
      },
      refusal: () => ($("tasks-part").hidden = true),
    },
    {
      query: SERVERS_UPDATED,
      optional: true,
      variables: () => ({}),
      next: ({ serverUpdated }) => {
        servers.set(serverUpdated.id, serverUpdated);
        showServers();
      },
      refusal: () => ($("servers-part").hidden = true),
    },
  ];
}
