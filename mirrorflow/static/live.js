// The live list: a plain client of the published GraphQL schema.

import { ask, send } from "./ask.js";
import { signIn, signInByLink, signedIn, signOut } from "./session.js";
import { follow } from "./socket.js";
import { background, tick } from "./tasks.js";
import { ago, clock, length } from "./words.js";

const MOST = 100; // runs on the page: those that have not ended come first
const AT_ONCE = 3; // more new runs than this in a moment don't fade in: none would be seen before it has moved on
const FIRST = 50; // runs that it begins with: they and their nodes must fit the cost limit
const NODES = 16; // nodes shown of each run
const SHOWN = {
  All: () => true,
  Running: open,
  Failed: ({ status }) => ["FAILED", "TIMED_OUT"].includes(status),
  Completed: ({ status }) => status === "COMPLETED",
  Canceled: ({ status }) => status === "CANCELED",
};

function open({ status }) {
  return ["PENDING", "RUNNING", "PAUSED"].includes(status);
}

const RUN = `fragment Run on Instance {
  id
  status
  createdAt
  startedAt
  completedAt
  pauseReason
  viewerCanCancel
  viewerCanPause
  viewerCanResume
  workflow { name displayName }
  version { version }
  progress { total running completed failed skipped canceled }
  error { message nodeId }
  nodeExecutions(first: ${NODES}) { nodes { id path nodeType status attempt startedAt completedAt dueAt waiting { ...Wait } } }
}
fragment Wait on Awaited {
  __typename
  ... on Timer { until }
  ... on Signal { name until }
  ... on Approval { title until viewerCanAnswer }
  ... on ChildInstance { instanceId }
}`;
const RUNS = `subscription Runs($after: BigInt) {
  instanceChanges(after: $after, first: ${FIRST}) {
    changeSeq
    snapshot
    removed
    added { ...Run }
    updated { ...Run }
  }
}
${RUN}`;
// What began long ago and still runs is not among the newest.
const OPEN = `query Open {
  instances(first: ${FIRST}, where: { status: { in: [PENDING, RUNNING, PAUSED] } }) { nodes { ...Run } }
}
${RUN}`;
const WORKFLOWS = `query Workflows {
  workflows(first: 100) { nodes { id name displayName description status currentVersion { version } } }
}`;
const CANCEL = `mutation Cancel($id: ID!) {
  instanceCancel(input: { id: $id }) { __typename ... on UserError { message } }
}`;

const PAUSE = `mutation Pause($id: ID!) {
  instancePause(input: { id: $id }) { __typename ... on UserError { message } }
}`;
const RESUME = `mutation Resume($id: ID!) {
  instanceResume(input: { id: $id }) { __typename ... on UserError { message } }
}`;
const ANSWER = `mutation Answer($id: ID!, $path: String!, $approved: Boolean!) {
  approvalAnswer(input: { id: $id, path: $path, approved: $approved }) { __typename ... on UserError { message } }
}`;

const $ = (id) => document.getElementById(id);
const runs = new Map(); // id → { run, row }
let shown = "All";
let after = null;

// ---- one run ----

function put(run, fades) {
  const known = runs.get(run.id);
  const row = known?.row ?? $("run").content.firstElementChild.cloneNode(true);
  runs.set(run.id, { run, row });
  const part = (name) => row.querySelector(`.${name}`);
  row.dataset.status = run.status;
  part("status").textContent = run.status.replace("_", " ");
  part("status").title = PAUSES[run.pauseReason] ?? "";
  part("name").textContent = run.workflow.displayName ?? run.workflow.name;
  part("name").title = run.workflow.name;
  part("version").textContent = run.version.version;
  part("id").textContent = run.id;
  part("since").dateTime = run.createdAt;
  part("since").title = new Date(run.createdAt).toLocaleString();
  part("cancel").hidden = !run.viewerCanCancel;
  part("pause").hidden = !run.viewerCanPause;
  part("resume").hidden = !run.viewerCanResume;
  const failed = run.error !== null;
  part("error").hidden = !failed;
  if (failed) part("error").textContent = [run.error.nodeId, run.error.message].filter(Boolean).join(": ");
  showProgress(part("bar"), run.progress);
  showNodes(part("nodes"), run);
  showTimes(run, row, Date.now());
  row.hidden = !SHOWN[shown](run);
  if (!known) {
    row.classList.toggle("fresh", fades);
    part("cancel").addEventListener("click", ({ target }) => send(target, CANCEL, { id: run.id }));
    part("pause").addEventListener("click", ({ target }) => send(target, PAUSE, { id: run.id }));
    part("resume").addEventListener("click", ({ target }) => send(target, RESUME, { id: run.id }));
    // Newest first: ids are ordered by time.
    const older = [...$("runs").children].find((other) => other.dataset.id < run.id);
    row.dataset.id = run.id;
    $("runs").insertBefore(row, older ?? null);
  }
}

function showProgress(bar, { total, running, completed, failed, skipped, canceled }) {
  bar.ariaValueMax = total;
  bar.ariaValueNow = completed + failed + skipped + canceled;
  const parts = { completed, failed, skipped: skipped + canceled, running };
  for (const [name, count] of Object.entries(parts)) {
    bar.querySelector(`.${name}`).style.width = `${total ? (100 * count) / total : 0}%`;
  }
}

function showNodes(list, { id, nodeExecutions, progress, completedAt }) {
  const chips = nodeExecutions.nodes.map((node) => {
    const chip = document.createElement("li");
    chip.dataset.status = node.status;
    chip.title = `${node.nodeType} · ${node.status}`;
    chip.append(node.path);
    const notes = [];
    if (node.attempt > 1) notes.push(`attempt ${node.attempt}`);
    if (node.startedAt && node.completedAt) notes.push(length(new Date(node.completedAt) - new Date(node.startedAt)));
    if (node.waiting) notes.push(waitsFor(node.waiting));
    else if (node.status === "RETRYING" && node.dueAt) notes.push(`again at ${clock(node.dueAt)}`);
    if (notes.length) chip.append(Object.assign(document.createElement("small"), { textContent: notes.join(" · ") }));
    if (node.waiting?.viewerCanAnswer) chip.append(answer(id, node.path, true), answer(id, node.path, false));
    return chip;
  });
  const more = progress.total - chips.length;
  // A node has no row before it starts: while there is room, those that are missing have not begun.
  const which = chips.length >= NODES ? "more" : completedAt ? "not run" : "to come";
  if (more > 0) chips.push(Object.assign(document.createElement("li"), { className: "rest", textContent: `${more} ${which}` }));
  list.replaceChildren(...chips);
}

function showTimes(run, row, now) {
  row.querySelector(".since").textContent = ago(now - new Date(run.createdAt));
  const end = run.completedAt ? new Date(run.completedAt) : now;
  row.querySelector(".duration").textContent = run.startedAt ? length(end - new Date(run.startedAt)) : "waiting";
}

const PAUSES = { USER: "Somebody paused it", BREAKPOINT: "It is at a breakpoint", STEP: "It goes step by step" };

function waitsFor(wait) {
  const until = wait.until ? ` until ${clock(wait.until)}` : "";
  switch (wait.__typename) {
    case "Signal": return `for the signal ${wait.name}${until}`;
    case "Approval": return `${wait.title}${until}`;
    case "ChildInstance": return `for ${wait.instanceId}`;
    default: return until.trim();
  }
}

function answer(id, path, approved) {
  const button = Object.assign(document.createElement("button"), { className: "quiet" });
  button.textContent = approved ? "Approve" : "Reject";
  button.addEventListener("click", () => send(button, ANSWER, { id, path, approved }));
  return button;
}

// ---- the whole list ----

function take({ instanceChanges: batch }) {
  if (batch.snapshot) {
    runs.clear();
    $("runs").replaceChildren();
    ask(OPEN).then(takeOpen, (error) => connection("lost", error.message));
  }
  // A snapshot comes newest first; putting the oldest in first keeps each insertion at the head.
  for (const run of [...batch.added, ...batch.updated].sort((a, b) => (a.id < b.id ? -1 : 1))) {
    put(run, batch.added.length <= AT_ONCE);
  }
  for (const id of batch.removed) drop(id);
  const oldest = [...runs.values()].map(({ run }) => run).sort((a, b) => open(a) - open(b) || (a.id < b.id ? -1 : 1));
  for (const { id } of oldest.slice(0, Math.max(0, runs.size - MOST))) drop(id);
  after = batch.changeSeq;
  showFilters();
}

function takeOpen({ instances }) {
  for (const run of instances.nodes) if (!runs.has(run.id)) put(run, false);
  showFilters();
}

function drop(id) {
  runs.get(id)?.row.remove();
  runs.delete(id);
}

function showFilters() {
  const all = [...runs.values()].map(({ run }) => run);
  const buttons = Object.entries(SHOWN).map(([name, fits]) => {
    const button = document.createElement("button");
    button.ariaPressed = String(name === shown);
    const count = Object.assign(document.createElement("b"), { textContent: all.filter(fits).length });
    button.append(`${name} `, count);
    button.addEventListener("click", () => choose(name));
    return button;
  });
  $("filters").replaceChildren(...buttons);
  $("empty").hidden = runs.size > 0;
}

function choose(name) {
  shown = name;
  for (const { run, row } of runs.values()) row.hidden = !SHOWN[shown](run);
  showFilters();
}

async function showWorkflows() {
  const { workflows } = await ask(WORKFLOWS);
  $("workflows").replaceChildren(
    ...workflows.nodes.map((workflow) => {
      const item = document.createElement("li");
      const state = Object.assign(document.createElement("span"), { textContent: workflow.status });
      state.dataset.state = workflow.status;
      const name = Object.assign(document.createElement("strong"), { textContent: workflow.displayName ?? workflow.name });
      name.title = workflow.name;
      const about = [workflow.currentVersion?.version, workflow.description].filter(Boolean).join(" · ");
      item.append(state, name, Object.assign(document.createElement("p"), { textContent: about }));
      return item;
    }),
  );
}

function connection(state, words = state) {
  $("connection").dataset.state = state;
  $("connection").textContent = words;
}

async function live() {
  $("live").hidden = false;
  $("sign-out").hidden = false;
  $("sign-out").addEventListener("click", async () => {
    await signOut();
    location.reload();
  });
  showFilters();
  const workflows = () => showWorkflows().catch((error) => connection("lost", error.message));
  workflows();
  const changes = {
    query: RUNS,
    variables: () => ({ after }),
    next: (data) => {
      const names = new Set([...$("workflows").querySelectorAll("strong")].map(({ title }) => title));
      take(data);
      if (data.instanceChanges.added.some(({ workflow }) => !names.has(workflow.name))) workflows();
    },
    refusal: ([error]) => {
      after = null; // an expired cursor: begin again from a snapshot
      connection("lost", error.message);
    },
  };
  follow([changes, ...(await background())], (state) =>
    state === "refused" ? location.reload() : connection(state, state === "lost" ? "reconnecting" : state),
  );
  setInterval(() => {
    const now = Date.now();
    for (const { run, row } of runs.values()) showTimes(run, row, now);
    tick();
  }, 500);
}

function stranger(reason) {
  connection("lost", "signed out");
  $("sign-in-page").hidden = false;
  $("refused").textContent = reason ?? "";
  $("sign-in").addEventListener("submit", async (event) => {
    event.preventDefault();
    const refused = await signIn($("token").value.trim());
    if (refused === null) location.reload();
    else $("refused").textContent = refused;
  });
}

const reason = await signInByLink();
if (await signedIn()) live();
else stranger(reason);
