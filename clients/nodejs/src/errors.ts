import { status as Code, type ServiceError } from "@grpc/grpc-js";
import { fromBinary } from "@bufbuild/protobuf";
import { decodeMessage } from "./codec.js";
import { StatusSchema } from "./gen/keelson/client/v1/status_pb.js";
import type * as meta_v1 from "./gen/meta_v1.js";

const STATUS = "k8s.io.apimachinery.pkg.apis.meta.v1.Status";

// What an error without a Status is reported as.
const fallback: Partial<Record<Code, [number, string]>> = {
  [Code.UNAVAILABLE]: [503, "ServiceUnavailable"],
  [Code.DEADLINE_EXCEEDED]: [504, "Timeout"],
  [Code.UNAUTHENTICATED]: [401, "Unauthorized"],
  [Code.PERMISSION_DENIED]: [403, "Forbidden"],
  [Code.RESOURCE_EXHAUSTED]: [429, "TooManyRequests"],
  [Code.INVALID_ARGUMENT]: [400, "BadRequest"],
  [Code.CANCELLED]: [499, "Canceled"],
};

/** A call failed. `reason` is what to compare: "NotFound", "AlreadyExists", "Conflict", "Expired", … */
export class ApiError extends Error {
  override readonly name = "ApiError";
  /** The HTTP code of Kubernetes' Status, for instance 404. */
  readonly code: number;
  /** Its reason, for instance "NotFound". */
  readonly reason: string;
  /** Its details: name, kind, causes, retryAfterSeconds. */
  readonly details: meta_v1.StatusDetails;
  /** Whether a server sent the Status. If not, it was made up from the gRPC error: no server answered, or the connection broke. */
  readonly answered: boolean;
  /** The gRPC code. */
  readonly grpcCode: Code;

  constructor(what: string, status: meta_v1.Status, grpcCode: Code, answered: boolean) {
    super(what === "" ? status.message : `${what}: ${status.message ?? ""}`);
    this.code = status.code ?? 0;
    this.reason = status.reason ?? "";
    this.details = status.details ?? {};
    this.grpcCode = grpcCode;
    this.answered = answered;
  }

  /** Whether the server refused the call without doing anything, so that it is safe to repeat. */
  get nothingDone(): boolean {
    return this.answered && this.code === 503 && (this.details.retryAfterSeconds ?? 0) > 0;
  }

  /** Whether a write's outcome is not known: read the object before repeating it. */
  get mayHaveHappened(): boolean {
    return [499, 500, 503, 504].includes(this.code) && !this.nothingDone;
  }

  /** Whether the details name a cause of this reason. */
  hasCause(reason: string): boolean {
    return (this.details.causes ?? []).some((c) => c.reason === reason);
  }
}

/** Returns the ApiError of a failed RPC, and anything else as it is. */
export function fromRpc(what: string, err: unknown): unknown {
  if (!(err instanceof Error) || typeof (err as ServiceError).code !== "number") return err;
  const e = err as ServiceError;
  const attached = statusOf(e);
  if (attached !== undefined) return new ApiError(what, attached, e.code, true);
  const [code, reason] = fallback[e.code] ?? [500, "InternalError"];
  return new ApiError(what, { code, reason, message: e.details || e.message }, e.code, false);
}

function statusOf(e: ServiceError): meta_v1.Status | undefined {
  for (const value of e.metadata?.get("grpc-status-details-bin") ?? []) {
    try {
      for (const detail of fromBinary(StatusSchema, value as Buffer).details) {
        if (detail.typeUrl.endsWith("/" + STATUS)) return decodeMessage(STATUS, detail.value) as meta_v1.Status;
      }
    } catch {
      return undefined; // not what it should be: the gRPC error remains
    }
  }
  return undefined;
}
