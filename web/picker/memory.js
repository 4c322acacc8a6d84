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
  if (response.status === 404) return; // nothing was kept yet
  if (!response.ok) throw new Error(`${FILE}: ${response.statusText}`);
  const content = await response.json();
  for (const key of /** @type {const} */ (["favourites", "recent"])) {
    const kept = content[key];
    if (Array.isArray(kept)) memory[key] = kept.filter(isText);
  }
  const pairs = Array.isArray(content.pairs) ? content.pairs : [];
  memory.pairs = pairs.filter((/** @type {unknown} */ one) => Array.isArray(one) && one.length === 2 && one.every(isText));
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
  keep(() => {
    memory.favourites = isFavourite(name)
      ? memory.favourites.filter((one) => one !== name)
      : [...memory.favourites, name];
  });
}

/** In the order in which they were kept. @returns {Pair[]} */
export const pairs = () => memory.pairs;

/** @param {string} first @param {string} second */
export const isKept = (first, second) => memory.pairs.some((pair) => pair[0] === first && pair[1] === second);

/** Keep a pair, or forget it. @param {string} first @param {string} second */
export function togglePair(first, second) {
  keep(() => {
    memory.pairs = isKept(first, second)
      ? memory.pairs.filter((pair) => pair[0] !== first || pair[1] !== second)
      : [...memory.pairs, [first, second]];
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
 * Change what is kept once it is known, or it would be lost; store it after all that came before.
 * @param {() => void} change
 */
async function keep(change) {
  try {
    await remember();
    change();
    tell();
    written = written.catch(() => {}).then(store);
    await written;
  } catch (error) {
    console.warn("CollectionLoRA: favourites and pairs were not kept:", error);
  }
}

const store = () => api.storeUserData(FILE, memory, { overwrite: true, stringify: true, throwOnError: true });

function tell() {
  for (const listener of listeners) listener();
}
