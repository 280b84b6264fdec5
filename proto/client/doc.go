// Package client is the Go client of a Keelson cluster. It gives typed access to Kubernetes'
// objects over keelson.resource.v1.ResourceService, with generics, a list-and-watch [Cache],
// and the streams of pods.
//
// # Connecting
//
// [Dial] connects to the gRPC (6444) or HTTPS (6443) ports of one or several apiservers and
// balances calls over those that answer. [FromKubeconfig] and [InCluster] return its [Config]. A
// client authenticates with the certificate in
// [Config.TLS] or with the bearer token of [Config.Token]; [TokenFile] follows the token of
// a pod's service account. [New] uses a connection that the caller owns, and [Client.Conn]
// serves the generated clients of the other services on the same port, such as
// keelson.snapshot.v1. A [Client] is safe for concurrent use; one per program is enough.
//
// # Objects
//
// [For] gives access to one kind, named by its Go type:
//
//	pods := client.For[*corev1.Pod](c)
//	pod, err := pods.Get(ctx, "default", "web-0")
//
// Its methods are Kubernetes' verbs: Get, List, All, Watch, Create, Update, UpdateStatus,
// Patch, Apply, Delete, DeleteCollection, GetScale and UpdateScale. [Post] reaches the
// subresources that are actions, [Bind] and [Evict] the two that are used most. [Metadata]
// reads only the metadata of a kind, which costs less, and [Resource.WithoutManagedFields]
// leaves out who owns which field. The built-in kinds are listed by
// [Kinds].
//
// [Dynamic] gives access to a kind that is known at run time only, as a tree of maps.
//
// Reads without a ResourceVersion return a state that is at least as new as every write
// that was acknowledged before the call.
//
// # Batches
//
// [Client.Commit] sends independent writes in one round trip. Each has its own permission,
// verdict and revision; one that fails does not stop the others:
//
//	results, err := c.Commit(ctx, client.CreateWrite(a), client.StatusWrite(b))
//
// # Caches and watches
//
// A [Cache] holds the present state of a collection in memory and delivers each change to
// its subscribers, once and in order, also across broken connections and restarts of
// apiservers. Use it for every program that follows a kind; [Resource.Watch] is the plain
// stream beneath it, which the caller resumes, and [Resource.Follow] resumes it until its state
// expires. [Watches] carries many watches over few streams.
//
// # Containers
//
// [Client.Logs], [Client.Exec], [Client.Attach] and [Client.PortForward] are kubectl's commands of
// these names, over gRPC. PortForward returns a net.Conn, for instance for an http.Transport;
// [Client.ForwardPort] serves a local listener.
//
// # Errors
//
// Where the server answered with a Kubernetes Status, the error is a *StatusError of
// k8s.io/apimachinery/pkg/api/errors, so that apierrors.IsNotFound, IsConflict and the
// others work. Otherwise it wraps the gRPC error (status.Code works), or the context's
// error if the context ended. [IsUnavailable] reports whether there was no verdict.
//
// # What is repeated
//
// A Get or List that did not reach a server is tried up to four times. A call, unless it is a
// stream, that a server refused without doing anything, because its store is out of reach (a
// Status 503 with retryAfterSeconds), is repeated for up to two seconds, at another
// apiserver if there is one. Nothing else is repeated: the outcome of a write that failed
// in another way is unknown, and only the caller can know whether repeating it is harmless. A
// caller that gave it a [RequestID] may repeat it.
//
// # Fencing
//
// The writes of a leader that was paused must not take effect after another has begun.
// [TakeFence] begins a leader's epoch; writes made with a context of [WithFence] are
// refused once another epoch has begun. [IsFenced] reports whether an error is such a
// refusal.
//
// # Traces
//
// A "traceparent" in the outgoing gRPC metadata is the parent of everything that a write
// causes; tracing handlers in [Config.DialOptions] add it. Events carry the trace context
// of the write that caused them ([Event.Traceparent]).
//
// # Tests
//
// Package clienttest serves an empty cluster in memory. Package clientconformance is the
// suite that it, and a real apiserver, must pass.
//
// The package must never repeat a write whose repetition could do something else than the
// first attempt did.
package client
