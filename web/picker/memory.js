// Favourites, kept pairs and recent choices of this user, kept by ComfyUI beside the user's other settings.
import { api } from "../../../scripts/api.js";

const FILE = "collectionlora.json";
const RECENT = 12;

/** @typedef {[string, string]} Pair */
/** @type {{favourites: string[], recent: string[], pairs: Pair[]}} */
const memory = { favourites: [], recent: [], pairs: [] };
/** @type {Promise<void> | null} */
let loading = null;
/** @type {Promise<unknown>} */
let written = Promise.resolve();
const listeners = new Set();
/** @type {(() => void)[]} changes that the file has not yet */
const pending = [];

/** Read what was kept; safe to call often. Rejects, until it is called again, where that cannot be read. */
export function remember() {
  loading ??= read().catch((error) => {
    loading = null;
    throw error;
  });
  return loading;
}

async function read() {
  const response = await api.getUserData(FILE);
  const empty = response.status === 404; // nothing was kept yet
  if (!response.ok && !empty) throw new Error(`${FILE}: ${response.statusText}`);
  const content = empty ? {} : await response.json();
  for (const key of /** @type {const} */ (["favourites", "recent"])) {
    const kept = content[key];
    memory[key] = Array.isArray(kept) ? kept.filter(isText) : [];
  }
  const pairs = Array.isArray(content.pairs) ? content.pairs : [];
  memory.pairs = pairs.filter((/** @type {unknown} */ one) => Array.isArray(one) && one.length === 2 && one.every(isText));
  for (const change of pending) change();
  tell();
}

/** @param {unknown} one */
const isText = (one) => typeof one === "string";

/** @param {string} name */
export const isFavourite = (name) => memory.favourites.includes(name);

/** Most recent first. @returns {string[]} */
export const recent = () => memory.recent;

/** @param {string} name */
export function toggleFavourite(name) {
  const wanted = !isFavourite(name);
  keep(() => {
    const others = memory.favourites.filter((one) => one !== name);
    memory.favourites = wanted ? [...others, name] : others;
  });
}

/** In the order in which they were kept. @returns {Pair[]} */
export const pairs = () => memory.pairs;

/** @param {string} first @param {string} second */
export const isKept = (first, second) => memory.pairs.some((pair) => pair[0] === first && pair[1] === second);

/** Keep a pair, or forget it. @param {string} first @param {string} second */
export function togglePair(first, second) {
  const wanted = !isKept(first, second);
  keep(() => {
    const others = memory.pairs.filter((pair) => pair[0] !== first || pair[1] !== second);
    memory.pairs = wanted ? [...others, [first, second]] : others;
  });
}

/** @param {string[]} names most recent first */
export function noteUse(names) {
  keep(() => {
    memory.recent = [...new Set([...names, ...memory.recent])].slice(0, RECENT);
  });
}

/**
 * Call `listener` whenever something changes; returns how to stop that.
 * @param {() => void} listener
 */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/**
 * Change what is kept: what is seen at once, the file after all changes that came before, other pages' too.
 * @param {() => void} change says what shall be, so that it can be made twice
 */
async function keep(change) {
  pending.push(change);
  change();
  tell();
  written = written.catch(() => {}).then(async () => {
    try {
      await read();
      await store();
    } finally {
      pending.shift();
    }
  });
  try {
    await written;
  } catch (error) {
    console.warn("CollectionLoRA: favourites and pairs were not kept:", error);
  }
}

const store = () => api.storeUserData(FILE, memory, { overwrite: true, stringify: true, throwOnError: true });

function tell() {
  for (const listener of listeners) listener();
}
