package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	podv1 "keelson.dev/proto/keelson/pod/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/front/podsession"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/internal/inflight"
)

const (
	podService = "/keelson.pod.v1.PodService/"
	// podMessage is the size in bytes of the largest message that PodService takes.
	podMessage = 64 << 10
	// maxPodStreams bounds the streams in progress, as for HTTP.
	maxPodStreams = 65536
	// startTimeout bounds how long a client may take to send the first message, and idleTimeout
	// how long nothing may be sent in either direction, as for HTTP.
	startTimeout = 10 * time.Second
	idleTimeout  = 4 * time.Hour
)

// MaxMessage returns the size in bytes of the largest message that a method takes, or 0 if only the
// caller's class bounds it.
func MaxMessage(method string) int {
	if strings.HasPrefix(method, podService) {
		return podMessage
	}
	return 0
}

// PodService implements keelson.pod.v1.PodService through the tunnel to the nodes.
//
// A stream passes through these states, in this order; each failure ends it with a Status:
//
//   - start: the first message is awaited. Nothing is allocated or opened for the client yet.
//   - authorized: RBAC allows the verb on the pod. From here on, the pipeline holds the right and
//     ends the stream when it is lost.
//   - open: the node has opened the session; the client has been told (Started).
//   - ended: by the node's Exit, by a failure of either side, by the client, or by the server's stop.
//
// Invariants: nothing of the pod is revealed before the right to it is checked; a frame is
// passed on before the next one is read, in either direction, so that a receiver that does not
// read stops the sender; whatever ends the stream ends the session, and with it the standard
// input of a command, a log, or a connection. The goroutine that reads from the client ends with the call.
type PodService struct {
	podv1.UnimplementedPodServiceServer
	api     pipeline.API
	tunnel  *tunnel.Server
	streams *inflight.Gauge
	// StartTimeout and IdleTimeout replace the defaults of 10 seconds and 4 hours, in tests.
	StartTimeout, IdleTimeout time.Duration
}

// NewPodService returns the service. Without a tunnel, every authorized call fails.
func NewPodService(api pipeline.API, t *tunnel.Server) *PodService {
	return &PodService{
		api: api, tunnel: t, streams: inflight.NewGauge(maxPodStreams), StartTimeout: startTimeout, IdleTimeout: idleTimeout,
	}
}

// Logs implements podv1.PodServiceServer.
func (s *PodService) Logs(r *podv1.LogsRequest, stream podv1.PodService_LogsServer) error {
	c := r.GetContainer()
	v, err := s.enter(stream.Context(), "get", "log", c.GetNamespace(), c.GetPod())
	if err != nil {
		return err
	}
	defer v.leave()
	logs := &nodev1.Logs{
		Follow: r.GetFollow(), Previous: r.GetPrevious(), Timestamps: r.GetTimestamps(),
		SinceSeconds: r.SinceSeconds, TailLines: r.TailLines, LimitBytes: r.LimitBytes,
	}
	switch r.GetStream() {
	case podv1.LogsRequest_STREAM_UNSPECIFIED:
	case podv1.LogsRequest_STREAM_STDOUT:
		logs.Stream = corev1.LogStreamStdout
	case podv1.LogsRequest_STREAM_STDERR:
		logs.Stream = corev1.LogStreamStderr
	default:
		logs.Stream = r.GetStream().String() // is refused by its name
	}
	if since := r.GetSinceTime(); since != nil {
		if err := since.CheckValid(); err != nil {
			return v.end(apierrors.NewBadRequest("since_time: " + err.Error()))
		}
		nano := since.AsTime().UnixNano()
		logs.SinceTimeUnixNano = &nano
	}
	if err := podsession.Logs(v.pod.Name, logs); err != nil {
		return v.end(err)
	}
	if logs.Pod, err = podsession.Container(v.pod, c.GetContainer()); err != nil {
		return v.end(err)
	}
	if podsession.Assigned(v.pod) != nil {
		return nil // there is no log yet
	}
	if err := v.open(&nodev1.Open{Target: &nodev1.Open_Logs{Logs: logs}}); err != nil {
		return v.end(err)
	}
	return v.end(v.session.Output(sender(func(p []byte) error { return stream.Send(&podv1.LogsResponse{Data: p}) }), nil))
}

// Exec implements podv1.PodServiceServer.
func (s *PodService) Exec(stream podv1.PodService_ExecServer) error {
	first, err := begin(stream.Context(), s.StartTimeout, stream.Recv)
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errNoStart(stream.Context())
	}
	c := start.GetContainer()
	v, err := s.enter(stream.Context(), "create", "exec", c.GetNamespace(), c.GetPod())
	if err != nil {
		return err
	}
	defer v.leave()
	ref, err := v.container(c)
	if err != nil {
		return v.end(err)
	}
	if err := podsession.Command(start.GetCommand()); err != nil {
		return v.end(err)
	}
	if err := v.open(&nodev1.Open{Target: &nodev1.Open_Exec{Exec: &nodev1.Exec{
		Pod: ref, Command: start.GetCommand(), Stdin: start.GetStdin(), Stdout: true, Stderr: !start.GetTty(), Tty: start.GetTty(),
	}}}); err != nil {
		return v.end(err)
	}
	if err := stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Started{Started: &podv1.Started{}}}); err != nil {
		return err
	}
	go v.input(terminal(stream.Recv, start.GetStdin(), start.GetTty()))
	err = v.session.Output(
		v.active(func(p []byte) error {
			return stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Stdout{Stdout: p}})
		}),
		v.active(func(p []byte) error {
			return stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Stderr{Stderr: p}})
		}))
	var exit *tunnel.ExitError
	if err != nil && !errors.As(err, &exit) {
		return v.end(err)
	}
	code := &podv1.Exit{}
	if exit != nil {
		code.Code = exit.Code
	}
	return stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Exit{Exit: code}})
}

// Attach implements podv1.PodServiceServer.
func (s *PodService) Attach(stream podv1.PodService_AttachServer) error {
	first, err := begin(stream.Context(), s.StartTimeout, stream.Recv)
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errNoStart(stream.Context())
	}
	c := start.GetContainer()
	v, err := s.enter(stream.Context(), "create", "attach", c.GetNamespace(), c.GetPod())
	if err != nil {
		return err
	}
	defer v.leave()
	ref, err := v.container(c)
	if err != nil {
		return v.end(err)
	}
	if err := v.open(&nodev1.Open{Target: &nodev1.Open_Attach{Attach: &nodev1.Attach{
		Pod: ref, Stdin: start.GetStdin(), Stdout: true, Stderr: !start.GetTty(), Tty: start.GetTty(),
	}}}); err != nil {
		return v.end(err)
	}
	if err := stream.Send(&podv1.AttachResponse{Message: &podv1.AttachResponse_Started{Started: &podv1.Started{}}}); err != nil {
		return err
	}
	go v.input(terminal(stream.Recv, start.GetStdin(), start.GetTty()))
	err = v.session.Output(
		v.active(func(p []byte) error {
			return stream.Send(&podv1.AttachResponse{Message: &podv1.AttachResponse_Stdout{Stdout: p}})
		}),
		v.active(func(p []byte) error {
			return stream.Send(&podv1.AttachResponse{Message: &podv1.AttachResponse_Stderr{Stderr: p}})
		}))
	var exit *tunnel.ExitError
	if errors.As(err, &exit) { // the exit code of the container is not that of the attach
		return nil
	}
	return v.end(err)
}

// PortForward implements podv1.PodServiceServer.
func (s *PodService) PortForward(stream podv1.PodService_PortForwardServer) error {
	first, err := begin(stream.Context(), s.StartTimeout, stream.Recv)
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errNoStart(stream.Context())
	}
	v, err := s.enter(stream.Context(), "create", "portforward", start.GetNamespace(), start.GetPod())
	if err != nil {
		return err
	}
	defer v.leave()
	if err := podsession.Assigned(v.pod); err != nil {
		return v.end(err)
	}
	if port := start.GetPort(); port < 1 || port > 65535 {
		return v.end(apierrors.NewBadRequest(fmt.Sprintf("port %d is not between 1 and 65535", port)))
	}
	if err := v.open(&nodev1.Open{Target: &nodev1.Open_PortForward{
		PortForward: &nodev1.PortForward{Pod: podsession.Ref(v.pod, ""), Port: start.GetPort()},
	}}); err != nil {
		return v.end(err)
	}
	if err := stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_Started{Started: &podv1.Started{}}}); err != nil {
		return err
	}
	go v.input(func() (frame, error) {
		m, err := stream.Recv()
		if err != nil {
			return frame{}, err
		}
		data, ok := m.GetMessage().(*podv1.PortForwardRequest_Data)
		if !ok {
			return frame{}, apierrors.NewBadRequest("after the start, only data may be sent")
		}
		return frame{data: data.Data}, nil
	})
	return v.end(v.session.Output(&duplex{
		sender: v.active(func(p []byte) error {
			return stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_Data{Data: p}})
		}),
		end: func() error {
			return stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_DataEnd{DataEnd: &podv1.DataEnd{}}})
		},
	}, nil))
}

// begin waits for the first message of a stream.
func begin[M any](ctx context.Context, limit time.Duration, recv func() (M, error)) (M, error) {
	type result struct {
		message M
		err     error
	}
	got := make(chan result, 1)
	go func() { // ends with the call
		m, err := recv()
		got <- result{m, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var none M
	select {
	case r := <-got:
		if errors.Is(r.err, io.EOF) {
			return none, errNoStart(ctx)
		}
		return r.message, r.err
	case <-timer.C:
		return none, wire(ctx, apierrors.NewTimeoutError("no start arrived in time", 0))
	case <-ctx.Done():
		return none, wire(ctx, errStopped())
	}
}

func errNoStart(ctx context.Context) error {
	return wire(ctx, apierrors.NewBadRequest("the first message must be a start"))
}

// errStopped returns the error of a stream whose call has ended. A client that has canceled it
// does not receive the error.
func errStopped() error {
	return apierrors.NewServiceUnavailable("the stream was canceled, or the server is stopping")
}

// visit is an authorized stream.
type visit struct {
	service *PodService
	call    context.Context // of the RPC
	ctx     context.Context // ends with call, with the right, or by fail
	fail    context.CancelCauseFunc
	verb    string
	target  pipeline.Target
	pod     *corev1.Pod
	session *tunnel.Session
	idle    *time.Timer
	release func()
}

// enter authorizes the caller and reads the pod. If it succeeds, leave must be called.
func (s *PodService) enter(ctx context.Context, verb, subresource, namespace, name string) (*visit, error) {
	t := pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Subresource: subresource, Namespace: namespace, Name: name}
	describe(ctx, verb, &resourcev1.Ref{Resource: t.Resource.Resource, Subresource: subresource, Namespace: namespace, Name: name})
	if err := s.api.Authorize(ctx, verb, t); err != nil {
		return nil, wire(ctx, err)
	}
	if s.tunnel == nil {
		return nil, wire(ctx, podsession.ErrNoTunnel())
	}
	if !s.streams.Enter(1) {
		return nil, wire(ctx, apierrors.NewTooManyRequests("too many streams in progress, please try again later", 1))
	}
	held, release := s.api.Hold(ctx, t, verb)
	inner, fail := context.WithCancelCause(held)
	v := &visit{service: s, call: ctx, ctx: inner, fail: fail, verb: verb, target: t}
	v.release = sync.OnceFunc(func() {
		fail(context.Canceled)
		release()
		s.streams.Leave(1)
	})
	var err error
	if v.pod, err = podsession.Pod(inner, s.api, t); err != nil {
		err = v.end(err)
		v.leave()
		return nil, err
	}
	return v, nil
}

// leave ends the session and gives up the right.
func (v *visit) leave() {
	if v.idle != nil {
		v.idle.Stop()
	}
	if v.session != nil {
		v.session.Close()
	}
	v.release()
}

// container returns the container that the client names, of a pod on a node.
func (v *visit) container(c *podv1.ContainerRef) (*nodev1.PodRef, error) {
	if err := podsession.Assigned(v.pod); err != nil {
		return nil, err
	}
	return podsession.Container(v.pod, c.GetContainer())
}

// open opens the session with the pod's node. From then on it may not be idle, unless it is a log.
func (v *visit) open(open *nodev1.Open) error {
	var err error
	if v.session, err = podsession.Open(v.ctx, v.service.tunnel, v.pod, open); err != nil {
		return err
	}
	if open.GetLogs() == nil {
		v.idle = time.AfterFunc(v.service.IdleTimeout, func() {
			v.fail(apierrors.NewTimeoutError("nothing was sent in either direction for "+v.service.IdleTimeout.String(), 0))
		})
	}
	return nil
}

// active returns a writer that sends what the node sends, and counts as activity.
func (v *visit) active(send sender) sender {
	return func(p []byte) error {
		v.idle.Reset(v.service.IdleTimeout)
		return send(p)
	}
}

// sender sends bytes to the client, at most tunnel.MaxData at once.
type sender func([]byte) error

// Write implements io.Writer.
func (s sender) Write(p []byte) (int, error) {
	sent := 0
	for piece := range slices.Chunk(p, tunnel.MaxData) {
		if err := s(piece); err != nil {
			return sent, err
		}
		sent += len(piece)
	}
	return sent, nil
}

// duplex is a sender whose client is told when the node has no more data.
type duplex struct {
	sender
	end func() error
}

// Close implements io.Closer.
func (d *duplex) Close() error { return d.end() }

// end converts the error that a stream ended with to the client's. What ended the stream's context
// counts, if anything did: the session's error is only a consequence.
func (v *visit) end(err error) error {
	if err == nil {
		return nil
	}
	var known *apierrors.StatusError
	var gone goneError
	switch cause := context.Cause(v.ctx); {
	case cause == nil:
	case v.call.Err() != nil:
		err = errStopped()
	case errors.As(cause, &known):
		err = known
	case errors.As(cause, &gone):
		return gone.error
	default: // Hold ended it
		if err = v.service.api.Authorize(v.call, v.verb, v.target); err == nil {
			err = apierrors.NewUnauthorized("the caller's credential is not accepted any more")
		}
	}
	switch {
	case errors.As(err, &known):
	case errors.Is(err, tunnel.ErrEnded):
		err = apierrors.NewServiceUnavailable(fmt.Sprintf("node %s: %v", v.pod.Spec.NodeName, err))
	default:
		if _, ok := status.FromError(err); ok { // of a message to the client
			return err
		}
	}
	return wire(context.WithoutCancel(v.call), err) // the call's own end has been considered
}

// goneError is the gRPC error with which the client's messages ended.
type goneError struct{ error }

// frame is a message from the client after the start.
type frame struct {
	data []byte
	end  bool // of the standard input
	size *podv1.TerminalSize
}

// input passes the client's messages to the session until either ends. It ends with the call.
func (v *visit) input(next func() (frame, error)) {
	open := true // the standard input
	for {
		f, err := next()
		var bad *apierrors.StatusError
		switch {
		case errors.Is(err, io.EOF):
			if open {
				_ = v.session.CloseChannel(nodev1.Channel_CHANNEL_STDIN) // fails if the session has ended
			}
			return
		case errors.As(err, &bad):
			v.fail(bad)
			return
		case err != nil:
			v.fail(goneError{err})
			return
		}
		v.idle.Reset(v.service.IdleTimeout)
		switch {
		case f.size != nil:
			err = v.session.Resize(uint16(f.size.GetColumns()), uint16(f.size.GetRows())) //nolint:gosec // checked by terminal
		case !open:
			v.fail(apierrors.NewBadRequest("the standard input has ended"))
			return
		case f.end:
			open = false
			err = v.session.CloseChannel(nodev1.Channel_CHANNEL_STDIN)
		default:
			err = v.session.Send(nodev1.Channel_CHANNEL_STDIN, f.data)
		}
		if err != nil {
			return // the session has ended
		}
	}
}

// terminalRequest is implemented by the messages of Exec and Attach.
type terminalRequest interface {
	GetStdinEnd() *podv1.StdinEnd
	GetResize() *podv1.TerminalSize
	GetStdin() []byte
}

// terminal returns the frames of an Exec or Attach.
func terminal[M terminalRequest](recv func() (M, error), stdin, tty bool) func() (frame, error) {
	return func() (frame, error) {
		m, err := recv()
		if err != nil {
			return frame{}, err
		}
		if size := m.GetResize(); size != nil {
			switch {
			case !tty:
				return frame{}, apierrors.NewBadRequest("resize: there is no terminal")
			case size.GetColumns() > 65535 || size.GetRows() > 65535:
				return frame{}, apierrors.NewBadRequest(fmt.Sprintf("resize: %d x %d is more than 65535", size.GetColumns(), size.GetRows()))
			}
			return frame{size: size}, nil
		}
		if !stdin {
			return frame{}, apierrors.NewBadRequest("the start did not ask for a standard input")
		}
		f := frame{data: m.GetStdin(), end: m.GetStdinEnd() != nil}
		if f.data == nil && !f.end {
			return frame{}, apierrors.NewBadRequest("after the start, only stdin, stdin_end and resize may be sent")
		}
		return f, nil
	}
}
