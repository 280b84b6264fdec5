package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/pod"
)

// Backend is the Handler of a node with a container runtime.
type Backend struct {
	Runtime *cri.Client
	// Pod returns one of the node's pods by its name and, unless it is "", its UID in the
	// API.
	Pod func(namespace, name, uid string) (*corev1.Pod, bool)
	// Usage measures the node and its pods.
	Usage func(ctx context.Context, maxAge time.Duration) (*nodev1.Usage, error)
	// API connects to the node's read API.
	API func(context.Context) (net.Conn, error)
}

// maxUsageAge is the largest age of a measurement that a session may accept.
const maxUsageAge = time.Minute

// dialTimeout is the maximum time to establish a connection.
const dialTimeout = 10 * time.Second

// Check implements Handler.
func (b *Backend) Check(open *nodev1.Open) error {
	var ref *nodev1.PodRef
	switch t := open.GetTarget().(type) {
	case *nodev1.Open_Logs:
		ref = t.Logs.GetPod()
	case *nodev1.Open_Exec:
		ref = t.Exec.GetPod()
		if len(t.Exec.GetCommand()) == 0 {
			return apierrors.NewBadRequest("you must specify at least 1 command for the container")
		}
	case *nodev1.Open_Attach:
		ref = t.Attach.GetPod()
	case *nodev1.Open_PortForward:
		ref = t.PortForward.GetPod()
	case *nodev1.Open_Dial:
		if t.Dial.GetNetwork() != "tcp" {
			return apierrors.NewBadRequest(fmt.Sprintf("network %q is not supported", t.Dial.GetNetwork()))
		}
		return nil
	case *nodev1.Open_Measure:
		if age := time.Duration(t.Measure.GetMaxAgeSeconds()) * time.Second; age < 0 || age > maxUsageAge {
			return apierrors.NewBadRequest(fmt.Sprintf("max_age_seconds: %d is not between 0 and 60", t.Measure.GetMaxAgeSeconds()))
		}
		return nil
	case *nodev1.Open_Api:
		return nil
	default:
		return apierrors.NewBadRequest("this node does not support the requested kind of session")
	}
	_, err := b.find(ref)
	return err
}

// Serve implements Handler.
func (b *Backend) Serve(ctx context.Context, open *nodev1.Open, s *Session) error {
	switch t := open.GetTarget().(type) {
	case *nodev1.Open_Logs:
		return b.logs(ctx, t.Logs, s)
	case *nodev1.Open_Exec:
		return b.exec(ctx, t.Exec, s)
	case *nodev1.Open_Attach:
		return b.attach(ctx, t.Attach, s)
	case *nodev1.Open_PortForward:
		return b.portForward(ctx, t.PortForward, s)
	case *nodev1.Open_Dial:
		dialer := net.Dialer{Timeout: dialTimeout}
		conn, err := dialer.DialContext(ctx, t.Dial.GetNetwork(), t.Dial.GetAddress())
		if err != nil {
			return apierrors.NewServiceUnavailable(err.Error())
		}
		return pipe(ctx, conn, s)
	case *nodev1.Open_Measure:
		return b.measure(ctx, t.Measure, s)
	case *nodev1.Open_Api:
		conn, err := b.API(ctx)
		if err != nil {
			return apierrors.NewServiceUnavailable(err.Error())
		}
		return pipe(ctx, conn, s)
	}
	return apierrors.NewBadRequest("this node does not support the requested kind of session")
}

// measure sends the usage of the node and its pods.
func (b *Backend) measure(ctx context.Context, req *nodev1.Measure, s *Session) error {
	u, err := b.Usage(ctx, time.Duration(req.GetMaxAgeSeconds())*time.Second)
	if err != nil {
		return apierrors.NewServiceUnavailable(err.Error())
	}
	raw, err := proto.Marshal(u)
	if err != nil {
		return err
	}
	_, err = s.Writer(nodev1.Channel_CHANNEL_STDOUT).Write(raw)
	return err
}

// find returns the pod that a reference names.
func (b *Backend) find(ref *nodev1.PodRef) (*corev1.Pod, error) {
	p, ok := b.Pod(ref.GetNamespace(), ref.GetName(), ref.GetUid())
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, ref.GetName())
	}
	return p, nil
}

// container returns the newest instance of a container, running or not.
func (b *Backend) container(ctx context.Context, ref *nodev1.PodRef) (*corev1.Pod, *cri.Pod, *cri.Container, error) {
	p, err := b.find(ref)
	if err != nil {
		return nil, nil, nil, err
	}
	if c, _ := pod.Find(p, ref.GetContainer()); c == nil {
		return nil, nil, nil, apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", ref.GetContainer(), ref.GetName()))
	}
	state, err := b.Runtime.Pod(ctx, string(p.UID))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("container runtime: %s", cri.Message(err))
	}
	return p, state, state.Latest(ref.GetContainer()), nil
}

// logs sends a container's log.
func (b *Backend) logs(ctx context.Context, req *nodev1.Logs, s *Session) error {
	p, state, c, err := b.container(ctx, req.GetPod())
	if err != nil {
		return err
	}
	name := req.GetPod().GetContainer()
	if req.GetPrevious() {
		// The previous instance is the one before the current instance, or the current one
		// if it has ended and is about to be replaced.
		instances := state.Instances(name)
		switch {
		case len(instances) > 1:
			c = instances[1]
		case len(instances) == 1 && instances[0].State == cri.StateExited && waits(p, name):
			c = instances[0]
		default:
			return apierrors.NewBadRequest(fmt.Sprintf("previous terminated container %q in pod %q not found", name, p.Name))
		}
	}
	if c == nil || c.State == cri.StateCreated {
		reason := "ContainerCreating"
		if st := pod.Status(p, name); st != nil && st.State.Waiting != nil {
			reason = st.State.Waiting.Reason
			if reason != "ContainerCreating" && reason != "PodInitializing" && st.State.Waiting.Message != "" {
				return apierrors.NewBadRequest(fmt.Sprintf("container %q in pod %q is waiting to start: %s", name, p.Name, trying(reason, st.State.Waiting.Message)))
			}
		}
		return apierrors.NewBadRequest(fmt.Sprintf("container %q in pod %q is waiting to start: %s", name, p.Name, reason))
	}
	o := log.Options{Follow: req.GetFollow(), Timestamps: req.GetTimestamps(), Tail: req.TailLines, Limit: req.LimitBytes}
	switch req.GetStream() {
	case "", "All":
	case "Stdout", "Stderr":
		o.Stream = strings.ToLower(req.GetStream())
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("stream %q is not supported", req.GetStream()))
	}
	if req.SinceSeconds != nil {
		o.Since = time.Now().Add(-time.Duration(*req.SinceSeconds) * time.Second)
	}
	if req.SinceTimeUnixNano != nil {
		o.Since = time.Unix(0, *req.SinceTimeUnixNano)
	}
	out := s.Writer(nodev1.Channel_CHANNEL_STDOUT)
	id := c.ID
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if req.GetFollow() {
		go func() { // the apiserver stops following by ending the stream
			defer cancel()
			for {
				if _, err := s.Recv(); err != nil {
					return
				}
			}
		}()
	}
	return log.Read(ctx, c.LogPath, o, func() (bool, error) {
		now, err := b.Runtime.ContainerStatus(ctx, id)
		if cri.NotFound(err) {
			return false, nil
		}
		if err != nil {
			return true, nil // the runtime is briefly unavailable, but the log is not
		}
		return cri.FromStatus(now, "").State == cri.StateRunning, nil
	}, out)
}

// trying returns why a container does not start, in the words that kubectl users know.
func trying(reason, message string) string {
	switch reason {
	case "ErrImagePull", "ImagePullBackOff":
		return "trying and failing to pull image"
	}
	return reason
}

func waits(p *corev1.Pod, container string) bool {
	st := pod.Status(p, container)
	return st != nil && st.State.Waiting != nil
}

// pipe copies between a connection and a session until both directions are closed or one of
// them fails.
func pipe(ctx context.Context, conn net.Conn, s *Session) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	in := make(chan error, 1)
	go func() {
		in <- func() error {
			for {
				m, err := s.Recv()
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					cancel() // the session has ended
					return err
				}
				switch m := m.GetMessage().(type) {
				case *nodev1.SessionResponse_Data:
					if _, err := conn.Write(m.Data.GetPayload()); err != nil {
						return err
					}
				case *nodev1.SessionResponse_CloseChannel:
					if half, ok := conn.(interface{ CloseWrite() error }); ok {
						_ = half.CloseWrite()
					}
					return nil
				}
			}
		}()
	}()
	out := s.Writer(nodev1.Channel_CHANNEL_STDOUT)
	_, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{conn}, make([]byte, maxData))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_ = out.Close()
	return err
}
