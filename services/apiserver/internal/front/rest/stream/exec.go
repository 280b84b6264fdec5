package stream

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/front/podsession"
	"keelson.dev/services/apiserver/internal/tunnel"
)

// execOptions parses the query of an exec or attach. As in Kubernetes, output streams are on by
// default, and a terminal has no separate stderr.
func execOptions(q url.Values) (*remotecommand.Options, error) {
	o := &remotecommand.Options{
		Stdin:  flag(q, "stdin"),
		Stdout: flag(q, "stdout") || !q.Has("stdout"),
		Stderr: flag(q, "stderr") || !q.Has("stderr"),
		TTY:    flag(q, "tty"),
	}
	if o.TTY {
		o.Stderr = false
	}
	if !o.Stdin && !o.Stdout && !o.Stderr {
		return nil, apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request, pod *corev1.Pod) error {
	q := r.URL.Query()
	options, err := execOptions(q)
	if err != nil {
		return err
	}
	ref, err := podsession.Container(pod, q.Get("container"))
	if err != nil {
		return err
	}
	command := q["command"]
	if err := podsession.Command(command); err != nil {
		return err
	}
	session, err := s.open(r.Context(), pod, &nodev1.Open{Target: &nodev1.Open_Exec{Exec: &nodev1.Exec{
		Pod: ref, Command: command,
		Stdin: options.Stdin, Stdout: options.Stdout, Stderr: options.Stderr, Tty: options.TTY,
	}}})
	if err != nil {
		return err
	}
	defer session.Close()
	runner := &runner{session: session}
	if wantsV5(r) {
		return s.serveV5(w, r, runner, options)
	}
	remotecommand.ServeExec(w, r, runner, pod.Name, string(pod.UID), ref.GetContainer(), command, options,
		idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	return nil
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, pod *corev1.Pod) error {
	q := r.URL.Query()
	options, err := execOptions(q)
	if err != nil {
		return err
	}
	ref, err := podsession.Container(pod, q.Get("container"))
	if err != nil {
		return err
	}
	session, err := s.open(r.Context(), pod, &nodev1.Open{Target: &nodev1.Open_Attach{Attach: &nodev1.Attach{
		Pod:   ref,
		Stdin: options.Stdin, Stdout: options.Stdout, Stderr: options.Stderr, Tty: options.TTY,
	}}})
	if err != nil {
		return err
	}
	defer session.Close()
	runner := &runner{session: session}
	if wantsV5(r) {
		return s.serveV5(w, r, runner, options)
	}
	remotecommand.ServeAttach(w, r, runner, pod.Name, string(pod.UID), ref.GetContainer(), options,
		idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	return nil
}

// runner implements Executor and Attacher over an open session.
type runner struct{ session *tunnel.Session }

// ExecInContainer implements remotecommand.Executor.
func (x *runner) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	failed := x.run(ctx, in, out, err, resize)
	var exit *tunnel.ExitError
	if errors.As(failed, &exit) {
		return utilexec.CodeExitError{Err: exit, Code: int(exit.Code)}
	}
	return bare(failed, "error executing command in container: ")
}

// AttachContainer implements remotecommand.Attacher. The exit code of the container is not that
// of the attach.
func (x *runner) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	failed := x.run(ctx, in, out, err, resize)
	var exit *tunnel.ExitError
	if errors.As(failed, &exit) {
		return nil
	}
	return bare(failed, "error attaching to container: ")
}

// bare removes the prefix that the streaming library adds to every error, if the node has already
// added it.
func bare(err error, prefix string) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "Internal error occurred: "), prefix))
}

// run copies between the client's streams and the session until the node ends the session. The
// goroutines that it starts end with the client's streams.
func (x *runner) run(ctx context.Context, in io.Reader, stdout, stderr io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if present(in) {
		go func() { _ = x.session.Input(nodev1.Channel_CHANNEL_STDIN, in) }()
	}
	if resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-resize:
					if !ok || x.session.Resize(size.Width, size.Height) != nil {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return x.session.Output(writer(stdout), writer(stderr))
}

// present reports whether in is a reader. The libraries pass different nil values.
func present(in io.Reader) bool { return in != nil && in != (io.ReadCloser)(nil) }

// writer hides Close, because the libraries close their streams themselves.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return struct{ io.Writer }{w}
}

// Channels of the WebSocket protocols.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channels
)

func wantsV5(r *http.Request) bool {
	return wsstream.IsWebSocketRequest(r) && wsstream.IsWebSocketRequestWithStreamCloseProtocol(r)
}

// serveV5 serves v5.channel.k8s.io, which kubectl requests: v4 with a way for the client to
// signal the end of stdin.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, x *runner, o *remotecommand.Options) error {
	types := make([]wsstream.ChannelType, channels)
	types[channelError] = wsstream.WriteChannel
	types[channelResize] = wsstream.ReadChannel
	if o.Stdin {
		types[channelStdin] = wsstream.ReadChannel
	}
	if o.Stdout {
		types[channelStdout] = wsstream.WriteChannel
	}
	if o.Stderr {
		types[channelStderr] = wsstream.WriteChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: types},
	})
	conn.SetIdleTimeout(idleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		s.cfg.Log.DebugContext(r.Context(), "websocket upgrade failed", "error", err)
		return nil
	}
	defer conn.Close()
	resize := make(chan remotecommand.TerminalSize)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go readSizes(ctx, streams[channelResize], resize)
	var (
		in             io.Reader
		stdout, stderr io.WriteCloser
	)
	if o.Stdin {
		in = streams[channelStdin]
	}
	if o.Stdout {
		stdout = streams[channelStdout]
	}
	if o.Stderr {
		stderr = streams[channelStderr]
	}
	text, err := json.Marshal(exitStatus(x.run(ctx, in, stdout, stderr, resize)))
	if err == nil {
		_, _ = streams[channelError].Write(text)
	}
	return nil
}

// readSizes reads the terminal's sizes until the connection ends.
func readSizes(ctx context.Context, r io.Reader, sizes chan<- remotecommand.TerminalSize) {
	defer close(sizes)
	decoder := json.NewDecoder(r)
	for {
		var size remotecommand.TerminalSize
		if decoder.Decode(&size) != nil {
			return
		}
		select {
		case sizes <- size:
		case <-ctx.Done():
			return
		}
	}
}

// exitStatus returns the Status that ends a v4 or v5 stream.
func exitStatus(err error) *metav1.Status {
	var exit *tunnel.ExitError
	var with apierrors.APIStatus
	switch {
	case err == nil:
		return &metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &exit):
		return &metav1.Status{
			Status:  metav1.StatusFailure,
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with non-zero exit code: " + err.Error(),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{
				Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(int(exit.Code)),
			}}},
		}
	case errors.As(err, &with):
		st := with.Status()
		return &st
	}
	st := apierrors.NewInternalError(err).Status()
	return &st
}
