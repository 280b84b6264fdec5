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
)

// userAgent is what Kubernetes' probes call themselves.
const userAgent = "kube-probe/1.37"

// maxBody is how much of an answer is kept for the message.
const maxBody = 10 << 10

// Execer runs commands in containers.
type Execer interface {
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error)
}

// Target is what a handler is run against.
type Target struct {
	Container   *corev1.Container
	ContainerID string
	PodIP       string
}

// outcome of one run. An error means that nothing was found out.
type outcome struct {
	ok      bool
	message string
}

// Run runs a handler once. It returns whether it succeeded and what it said; an
// error means that it could not be run.
func Run(ctx context.Context, exec Execer, t Target, h *corev1.ProbeHandler, timeout time.Duration) (ok bool, message string, err error) {
	var o outcome
	switch {
	case h.Exec != nil:
		o, err = runExec(ctx, exec, t, h.Exec.Command, timeout)
	case h.HTTPGet != nil:
		o, err = RunHTTP(ctx, t, h.HTTPGet, timeout)
	case h.TCPSocket != nil:
		o, err = runTCP(ctx, t, h.TCPSocket, timeout)
	case h.GRPC != nil:
		o, err = runGRPC(ctx, t, h.GRPC, timeout)
	default:
		return false, "", errors.New("probe has no handler")
	}
	return o.ok, o.message, err
}

func runExec(ctx context.Context, exec Execer, t Target, command []string, timeout time.Duration) (outcome, error) {
	stdout, stderr, code, err := exec.ExecSync(ctx, t.ContainerID, command, timeout)
	if ctx.Err() != nil {
		return outcome{}, ctx.Err()
	}
	if cri.TimedOut(err) {
		return outcome{message: fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(command, " "), timeout)}, nil
	}
	if err != nil {
		return outcome{}, fmt.Errorf("exec %q: %s", command, cri.Message(err))
	}
	text := string(stdout) + string(stderr)
	if len(text) > maxBody {
		text = text[:maxBody]
	}
	return outcome{ok: code == 0, message: text}, nil
}

// RunHTTP gets a URL as probes and hooks do; any answer from 200 to 399 is a
// success.
func RunHTTP(ctx context.Context, t Target, get *corev1.HTTPGetAction, timeout time.Duration) (outcome, error) {
	port, err := Port(get.Port, t.Container)
	if err != nil {
		return outcome{}, err
	}
	host := get.Host
	if host == "" {
		host = t.PodIP
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
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return outcome{message: err.Error()}, nil
	}
	req.Header = headers(get.HTTPHeaders)
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := httpClient(host).Do(req)
	if err != nil {
		return outcome{message: err.Error()}, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil && ctx.Err() != nil {
		return outcome{message: err.Error()}, nil
	}
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusBadRequest {
		return outcome{ok: true, message: string(body)}, nil
	}
	return outcome{message: fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}, nil
}

// Succeeded is the outcome as a pair.
func (o outcome) Succeeded() (bool, string) { return o.ok, o.message }

func headers(list []corev1.HTTPHeader) http.Header {
	out := http.Header{}
	for _, h := range list {
		out.Add(h.Name, h.Value)
	}
	if _, ok := out["User-Agent"]; !ok {
		out.Set("User-Agent", userAgent)
	}
	if _, ok := out["Accept"]; !ok {
		out.Set("Accept", "*/*")
	} else if out.Get("Accept") == "" {
		out.Del("Accept")
	}
	return out
}

// httpClient follows redirects within the pod; one that leads elsewhere counts as
// an answer.
func httpClient(host string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a probe asks whether a pod answers, not who it is
			DisableKeepAlives:  true,
			DisableCompression: true,
			Proxy:              nil,
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

func runTCP(ctx context.Context, t Target, action *corev1.TCPSocketAction, timeout time.Duration) (outcome, error) {
	port, err := Port(action.Port, t.Container)
	if err != nil {
		return outcome{}, err
	}
	host := action.Host
	if host == "" {
		host = t.PodIP
	}
	dialer := net.Dialer{Timeout: timeout}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return outcome{message: err.Error()}, nil
	}
	_ = conn.Close()
	return outcome{ok: true}, nil
}

func runGRPC(ctx context.Context, t Target, action *corev1.GRPCAction, timeout time.Duration) (outcome, error) {
	address := net.JoinHostPort(t.PodIP, strconv.Itoa(int(action.Port)))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent(userAgent), grpc.WithNoProxy())
	if err != nil {
		return outcome{}, err
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
		return outcome{message: fmt.Sprintf("timeout: health rpc did not complete within %s", timeout)}, nil
	case cri.Unimplemented(err):
		return outcome{message: "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + cri.Message(err)}, nil
	case err != nil:
		return outcome{message: fmt.Sprintf("timeout: failed to connect service %q within %s: %s", address, timeout, cri.Message(err))}, nil
	case resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return outcome{message: fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus())}, nil
	}
	return outcome{ok: true, message: "service healthy"}, nil
}

// Port resolves a port by number or by its name in the container.
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
