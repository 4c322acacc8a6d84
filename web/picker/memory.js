// Favourites and recent choices of this user, kept by ComfyUI beside the user's other settings.
import { api } from "../../../scripts/api.js";

const FILE = "collectionlora.json";
const RECENT = 12;

/** @type {{favourites: string[], recent: string[]}} */
const memory = { favourites: [], recent: [] };
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
          if (Array.isArray(kept)) memory[key] = kept.filter((one) => typeof one === "string");
        }
      }
    } catch {
      // nothing was kept yet
    }
    changed();
  })();
  return loading;
}

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
