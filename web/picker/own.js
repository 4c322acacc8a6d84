// The gallery on the user's own picture: a prompt beside the user's graph, with that graph's model and collection.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { t } from "../words.js";

/** @typedef {Record<string, {class_type: string, inputs: Record<string, any>}>} Prompt */

/**
 * Draw all effects that a Choose Effect node offers. Rejects with what is missing or went wrong.
 * @param {string} id the node's, in the prompt
 * @param {File} picture
 * @param {(text: string) => void} tell hears how far it is
 */
export async function drawGallery(id, picture, tell) {
  const { output, workflow } = await app.graphToPrompt();
  const wanted = sheetOf(/** @type {Prompt} */ (output), id);
  tell(t("drawing …"));
  wanted.collectionlora_picture.inputs.image = await upload(picture);
  await run(withAllBefore({ ...output, ...wanted }, "collectionlora_show"), workflow, tell);
}

/** A contact sheet for the gallery, with what this graph loads and encodes with. @param {Prompt} graph @param {string} id */
function sheetOf(graph, id) {
  let from = graph[id]?.inputs.collection?.[0];
  while (graph[from]?.class_type === "ComfySwitchNode") {
    const { switch: on, ...sides } = graph[from].inputs;
    from = sides[`on_${on}`]?.[0];
  }
  const load = graph[from];
  if (load?.class_type !== "CollectionLoraLoad") throw new Error(t("Connect Load Collection to see its effects."));
  const [at, encode] = fedBy(graph, id, "CollectionLoraEncode", "effect");
  if (!encode) throw new Error(t("Connect Encode Effect: your picture is encoded with what it is connected to."));
  const { clip, vae, long_side, shape } = encode.inputs;
  const [, sampler] = fedBy(graph, at, "CollectionLoraSampler", "positive");
  const { seed = 0, steps = 8 } = sampler?.inputs ?? {};
  for (const [name, link] of Object.entries({ model: load.inputs.model, clip, vae })) {
    if (!link) throw new Error(t("Nothing is connected to {name}.", { name }));
  }
  const sheet = {
    model: sampler?.inputs.model ?? [from, 0], // with what stands between, as another LoRA
    collection: [from, 1],
    image: ["collectionlora_picture", 0],
    ...{ clip, vae, long_side, shape },
    ...{ effects: "", seed, steps, for_gallery: true },
  };
  return {
    collectionlora_picture: { class_type: "LoadImage", inputs: { image: "" } },
    collectionlora_sheet: { class_type: "CollectionLoraContactSheet", inputs: sheet },
    collectionlora_show: { class_type: "PreviewImage", inputs: { images: ["collectionlora_sheet", 0] } },
  };
}

/**
 * The first node of a class that gets an input from another, with its id.
 * @param {Prompt} graph @param {string} id the other's @param {string} kind @param {string} input
 * @returns {[string, Prompt[string] | undefined]}
 */
function fedBy(graph, id, kind, input) {
  const found = Object.entries(graph).find(([, node]) => node.class_type === kind && node.inputs[input]?.[0] === id);
  return found ?? ["", undefined];
}

/**
 * A node and all that it needs.
 * @param {Prompt} graph @param {string} id @param {Prompt} [kept]
 */
function withAllBefore(graph, id, kept = {}) {
  if (kept[id] || !graph[id]) return kept;
  kept[id] = graph[id];
  for (const value of Object.values(graph[id].inputs)) {
    if (Array.isArray(value)) withAllBefore(graph, value[0], kept);
  }
  return kept;
}

/** @param {File} picture */
async function upload(picture) {
  const body = new FormData();
  body.append("image", picture);
  const response = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!response.ok) throw new Error(t("The picture could not be uploaded: {reason}", { reason: response.statusText }));
  const { name, subfolder } = await response.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

/**
 * Queue a prompt and wait for its end.
 * @param {Prompt} prompt @param {unknown} workflow @param {(text: string) => void} tell
 */
async function run(prompt, workflow, tell) {
  const queued = queue({ prompt, client_id: api.clientId, extra_data: { extra_pnginfo: { workflow } } });
  const id = queued.catch(() => ""); // events may come before it is known
  const heard = new AbortController();
  /** @param {string} kind @param {(detail: any) => void} listener */
  const listen = (kind, listener) => {
    const ours = async (/** @type {any} */ { detail }) => {
      if (detail?.prompt_id === (await id)) listener(detail);
    };
    api.addEventListener(/** @type {any} */ (kind), ours, /** @type {any} */ ({ signal: heard.signal }));
  };
  try {
    await new Promise((resolve, reject) => {
      listen("collectionlora.gallery", (detail) => tell(t("drawing: {done} of {total}", detail)));
      listen("execution_success", resolve);
      listen("execution_interrupted", () => reject(new Error(t("Cancelled."))));
      listen("execution_error", (detail) => reject(new Error(detail.exception_message)));
      // Of what is deleted before its turn no event tells; of what has ended one did, before this one.
      const look = async () => {
        try {
          if (await isQueued(await id)) return;
          if (await isComplete(await id)) resolve(null); // while the page was cut off
          else reject(new Error(t("Cancelled.")));
        } catch {
          // the server is away; this is called again when it is back
        }
      };
      api.addEventListener("status", look, { signal: heard.signal });
      queued.catch(reject);
    });
  } finally {
    heard.abort();
  }
}

/** Whether a prompt runs or waits. @param {string} id */
async function isQueued(id) {
  const response = await api.fetchApi("/queue");
  const { queue_running, queue_pending } = await response.json();
  return [...queue_running, ...queue_pending].some((one) => one[1] === id);
}

/** Whether a prompt has ended well. @param {string} id */
async function isComplete(id) {
  const response = await api.fetchApi(`/history/${id}`);
  return Boolean((await response.json())[id]?.status?.completed);
}

/** The id of what was queued; rejects with why it was not. @param {object} asked */
async function queue(asked) {
  const headers = { "Content-Type": "application/json" };
  const response = await api.fetchApi("/prompt", { method: "POST", headers, body: JSON.stringify(asked) });
  const { prompt_id, error, node_errors } = await response.json();
  if (response.ok) return prompt_id;
  const errors = Object.values(node_errors ?? {}).flatMap((node) => node.errors);
  throw new Error([error, ...errors].map((one) => one.details || one.message || one).join("; "));
}
