// Favourites, kept pairs and recent choices of this user, kept by ComfyUI beside the user's other settings.
import { api } from "../../../scripts/api.js";

const FILE = "collectionlora.json";
const RECENT = 12;

/** @typedef {[string, string]} Pair */
/** @type {{favourites: string[], recent: string[], pairs: Pair[]}} */
const memory = { favourites: [], recent: [], pairs: [] };
/** @type {Promise<void> | null} */
let loading = null;
const listeners = new Set();

/** Read what was kept; safe to call often. */
export function remember() {
  loading ??= (async () => {
    try {
      const response = await api.getUserData(FILE);
      if (response.ok) {
        const content = await response.json();
        for (const key of /** @type {const} */ (["favourites", "recent"])) {
          const kept = content[key];
          if (Array.isArray(kept)) memory[key] = kept.filter(isText);
        }
        const pairs = Array.isArray(content.pairs) ? content.pairs : [];
        memory.pairs = pairs.filter((/** @type {unknown} */ one) => Array.isArray(one) && one.length === 2 && one.every(isText));
      }
    } catch {
      // nothing was kept yet
    }
    changed();
  })();
  return loading;
}

/** @param {unknown} one */
const isText = (one) => typeof one === "string";

/** @param {string} name */
export const isFavourite = (name) => memory.favourites.includes(name);

/** Most recent first. @returns {string[]} */
export const recent = () => memory.recent;

/** @param {string} name */
export function toggleFavourite(name) {
  memory.favourites = isFavourite(name)
    ? memory.favourites.filter((one) => one !== name)
    : [...memory.favourites, name];
  keep();
}

/** In the order in which they were kept. @returns {Pair[]} */
export const pairs = () => memory.pairs;

/** @param {string} first @param {string} second */
export const isKept = (first, second) => memory.pairs.some((pair) => pair[0] === first && pair[1] === second);

/** Keep a pair, or forget it. @param {string} first @param {string} second */
export function togglePair(first, second) {
  memory.pairs = isKept(first, second)
    ? memory.pairs.filter((pair) => pair[0] !== first || pair[1] !== second)
    : [...memory.pairs, [first, second]];
  keep();
}

/** @param {string} name */
export function noteUse(name) {
  if (memory.recent[0] === name) return;
  memory.recent = [name, ...memory.recent.filter((one) => one !== name)].slice(0, RECENT);
  keep();
}

/**
 * Call `listener` whenever something changes; returns how to stop that.
 * @param {() => void} listener
 */
export function onChange(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function keep() {
  changed();
  api.storeUserData(FILE, memory, { overwrite: true, stringify: true, throwOnError: false }).catch(() => {});
}

function changed() {
  for (const listener of listeners) listener();
}
