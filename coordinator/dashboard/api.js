// The admin API of the coordinator that served this page. A page may only ask where it came from, so no other is asked.

/** The longest that an answer may take. */
const LIMIT_MS = 8000;

/** An answer that is none, or none that helps. `status` is 0 where nobody answered. */
export class ApiError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function refusal(answer) {
  let detail = `the coordinator answered ${answer.status}`;
  try {
    const problem = await answer.json();
    if (typeof problem.detail === "string") detail = problem.detail;
  } catch {
    // No problem document: the status says what there is to say.
  }
  return new ApiError(answer.status, detail);
}

async function ask(path, options) {
  try {
    return await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const why = error.name === "TimeoutError" ? `no answer within ${LIMIT_MS / 1000} s` : "no connection";
    throw new ApiError(0, why);
  }
}

/** Takes server-sent events apart, in whatever pieces they come. */
export class EventParser {
  constructor() {
    this.rest = "";
    this.event = { id: null, kind: "message", data: "" };
  }

  /** Takes in a piece and returns the events that are whole. */
  feed(piece) {
    const lines = (this.rest + piece).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    const whole = [];
    for (const line of lines) {
      if (line === "") {
        if (this.event.data !== "") whole.push(this.event);
        this.event = { id: null, kind: "message", data: "" };
        continue;
      }
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "id") this.event.id = value;
      else if (name === "event") this.event.kind = value;
      else if (name === "data") this.event.data += this.event.data === "" ? value : `\n${value}`;
    }
    return whole;
  }
}

/** The admin API, asked with one token. */
export class Api {
  constructor(token) {
    this.headers = { authorization: `Bearer ${token}`, accept: "application/json" };
  }

  /** Returns the answer at a path. */
  async get(path) {
    const answer = await ask(path, { headers: this.headers, signal: AbortSignal.timeout(LIMIT_MS) });
    if (!answer.ok) throw await refusal(answer);
    try {
      return await answer.json();
    } catch {
      throw new ApiError(0, "the answer broke off");
    }
  }

  /** Follows the stream at a path until it ends; `take` gets each event. */
  async follow(path, last, signal, take) {
    const headers = { ...this.headers, accept: "text/event-stream", "last-event-id": String(last) };
    const answer = await ask(path, { headers, signal });
    if (!answer.ok) throw await refusal(answer);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new EventParser();
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError(0, "the stream broke off");
      }
      if (piece.done) return;
      for (const event of parser.feed(piece.value)) take(event);
    }
  }
}
