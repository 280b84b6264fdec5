package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/plaintext"
)

// The user agents of Kubernetes' probes and lifecycle hooks.
const (
	probeAgent = "kube-probe/1.37"
	hookAgent  = "kube-lifecycle/1.37"
)

const (
	// maxOutput is how much of a command's output or an HTTP body is kept, in bytes.
	maxOutput = 10 << 10
	// maxHeader is the maximum size of an HTTP response header that is read, in bytes.
	maxHeader = 1 << 20
)

// Execer runs commands in containers.
type Execer interface {
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error)
}

// Target is the container that a handler runs against.
type Target struct {
	Container   *corev1.Container
	ContainerID string
	PodIP       string
}

// Outcome is the result of one run of a probe.
type Outcome struct {
	OK bool
	// Warning marks a success that is worth an event.
	Warning bool
	// Message is the reason of a failure, or the container's response.
	Message string
}

// Run runs a probe's handler once. An error means that the result is unknown.
func Run(ctx context.Context, exec Execer, t Target, h *corev1.ProbeHandler, timeout time.Duration) (Outcome, error) {
	var o Outcome
	var err error
	switch {
	case h.Exec != nil:
		o, err = runExec(ctx, exec, t, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		o, err = runHTTP(ctx, t, h.HTTPGet, timeout)
	case h.TCPSocket != nil:
		o, err = runTCP(ctx, t, h.TCPSocket, timeout)
	case h.GRPC != nil:
		o, err = runGRPC(ctx, t, h.GRPC, timeout)
	default:
		return o, errors.New("probe has no handler")
	}
	o.Message = plaintext.Clean(o.Message, maxOutput)
	return o, err
}

func runExec(ctx context.Context, exec Execer, t Target, command []string, timeout time.Duration) (Outcome, error) {
	stdout, stderr, code, err := exec.ExecSync(ctx, t.ContainerID, command, timeout)
	if ctx.Err() != nil {
		return Outcome{}, ctx.Err()
	}
	if cri.TimedOut(err) {
		return Outcome{Message: fmt.Sprintf("command timed out after %s", timeout)}, nil
	}
	if err != nil {
		return Outcome{}, errors.New(ExecFailure(err))
	}
	text := append(head(stdout, maxOutput), head(stderr, maxOutput)...)
	return Outcome{OK: code == 0, Message: string(head(text, maxOutput))}, nil
}

func head(b []byte, most int) []byte { return b[:min(len(b), most):min(len(b), most)] }

// ExecFailure explains why the runtime did not run a command. It does not contain the
// runtime's error, which quotes the command and so may contain secrets.
func ExecFailure(err error) string {
	text := err.Error()
	switch {
	case cri.NotFound(err):
		return "the container is gone"
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		return "the command's program was not found in the container"
	case strings.Contains(text, "permission denied"):
		return "the command's program may not be executed in the container"
	case strings.Contains(text, "not in running state"), strings.Contains(text, "not running"), strings.Contains(text, "stopped container"):
		return "the container is not running"
	case cri.Down(err):
		return "the container runtime is unreachable"
	}
	return "the container runtime could not run the command"
}

// request builds the HTTP request that an httpGet action describes.
func request(ctx context.Context, t Target, get *corev1.HTTPGetAction, agent string) (*http.Request, error) {
	port, err := Port(get.Port, t.Container)
	if err != nil {
		return nil, err
	}
	host := get.Host
	if host == "" {
		host = t.PodIP
	}
	if host == "" {
		return nil, errors.New("the pod has no address yet")
	}
	scheme := strings.ToLower(string(get.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header = headers(get.HTTPHeaders, agent)
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	return req, nil
}

// runHTTP sends a GET request; any status from 200 to 399 is a success. A redirect to
// another host is not followed and counts as a success with a warning.
func runHTTP(ctx context.Context, t Target, get *corev1.HTTPGetAction, timeout time.Duration) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := request(ctx, t, get, probeAgent)
	if err != nil {
		return Outcome{}, err
	}
	resp, err := httpClient(req.URL.Hostname()).Do(req)
	if err != nil {
		return Outcome{Message: err.Error()}, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	if err != nil && ctx.Err() != nil {
		return Outcome{Message: err.Error()}, nil
	}
	switch {
	case resp.StatusCode < http.StatusOK || resp.StatusCode >= http.StatusBadRequest:
		return Outcome{Message: fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}, nil
	case resp.StatusCode >= http.StatusMultipleChoices:
		return Outcome{OK: true, Warning: true, Message: "Probe terminated redirects, Response body: " + string(body)}, nil
	}
	return Outcome{OK: true, Message: string(body)}, nil
}

func headers(list []corev1.HTTPHeader, agent string) http.Header {
	out := http.Header{}
	for _, h := range list {
		out.Add(h.Name, h.Value)
	}
	if _, ok := out["User-Agent"]; !ok {
		out.Set("User-Agent", agent)
	}
	if _, ok := out["Accept"]; !ok {
		out.Set("Accept", "*/*")
	} else if out.Get("Accept") == "" {
		out.Del("Accept")
	}
	return out
}

// httpClient follows redirects within host. A redirect to another host is returned as the
// response.
func httpClient(host string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // probes and hooks check that a pod responds; they do not authenticate it
			DisableKeepAlives:  true,
			DisableCompression: true,
			Proxy:              nil,

			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Hostname() != host {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
}

func runTCP(ctx context.Context, t Target, action *corev1.TCPSocketAction, timeout time.Duration) (Outcome, error) {
	port, err := Port(action.Port, t.Container)
	if err != nil {
		return Outcome{}, err
	}
	host := action.Host
	if host == "" {
		host = t.PodIP
	}
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Outcome{Message: err.Error()}, nil
	}
	_ = conn.Close()
	return Outcome{OK: true}, nil
}

func runGRPC(ctx context.Context, t Target, action *corev1.GRPCAction, timeout time.Duration) (Outcome, error) {
	address := net.JoinHostPort(t.PodIP, strconv.Itoa(int(action.Port)))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent(probeAgent), grpc.WithNoProxy())
	if err != nil {
		return Outcome{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	service := ""
	if action.Service != nil {
		service = *action.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	switch {
	case err != nil && ctx.Err() != nil:
		return Outcome{Message: fmt.Sprintf("timeout: health rpc did not complete within %s", timeout)}, nil
	case cri.Unimplemented(err):
		return Outcome{Message: "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + cri.Message(err)}, nil
	case err != nil:
		return Outcome{Message: fmt.Sprintf("timeout: failed to connect service %q within %s: %s", address, timeout, cri.Message(err))}, nil
	case resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return Outcome{Message: fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus())}, nil
	}
	return Outcome{OK: true, Message: "service healthy"}, nil
}

// Port resolves a port number or the name of a container port.
func Port(p intstr.IntOrString, c *corev1.Container) (int, error) {
	port := p.IntValue()
	if p.Type == intstr.String && port == 0 {
		found := false
		for _, cp := range c.Ports {
			if cp.Name == p.StrVal {
				port, found = int(cp.ContainerPort), true
			}
		}
		if !found {
			return 0, fmt.Errorf("port %s not found", p.StrVal)
		}
	}
	if port < 1 || port > 65535 {
		return 0, fmt.Errorf("invalid port number: %d", port)
	}
	return port, nil
}
