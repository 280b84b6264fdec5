package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"

	"keelson.dev/services/apiserver/internal/front/podsession"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// backend is the destination of a proxied request.
type backend struct {
	node string // from whose network the address is dialed
	host string // address:port
	api  bool   // the read API of the node itself
}

// proxy forwards an HTTP request to a port of a pod, or of one of a service's endpoints. The node
// that the pod runs on dials it. rest is the path there. The name may be NAME, NAME:PORT or
// SCHEME:NAME:PORT.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, t pipeline.Target, rest string) error {
	scheme, name, port, err := splitTarget(t)
	if err != nil {
		return err
	}
	t.Name = name
	var to backend
	if t.Resource.Resource == "pods" {
		to, err = s.podBackend(r.Context(), t, port)
	} else {
		to, err = s.serviceBackend(r.Context(), t, port)
	}
	if err != nil {
		return err
	}
	return s.forward(w, r, scheme, to, rest)
}

// splitTarget splits the name of a proxy's target.
func splitTarget(t pipeline.Target) (scheme, name, port string, err error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(t.Name)
	if !ok {
		return "", "", "", apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", strings.TrimSuffix(t.Resource.Resource, "s"), t.Name))
	}
	return scheme, name, port, nil
}

// forward forwards a request to a backend.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, scheme string, to backend, rest string) error {
	location := &url.URL{Scheme: cmp.Or(scheme, "http"), Host: to.host}
	if rest != "" {
		location.Path = "/" + rest
	}
	r = r.Clone(r.Context())
	for header := range r.Header { // credentials are for this server only
		if header == "Authorization" || strings.HasPrefix(header, "Impersonate-") {
			delete(r.Header, header)
		}
	}
	transport := &http.Transport{
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			if to.api {
				return s.cfg.Tunnel.API(r.Context(), to.node)
			}
			return s.cfg.Tunnel.Dial(r.Context(), to.node, address)
		},
		DisableKeepAlives: true,
		// As in Kubernetes, because the certificates of pods are not signed by a known authority.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
	}
	responder := &responder{}
	proxy.NewUpgradeAwareHandler(location, plain{transport}, true, false, responder).ServeHTTP(w, r)
	return responder.err
}

// plain returns the node's own reason for a failed connection, without the text that net/http
// adds, which depends on whether a write or a read fails first.
type plain struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (p plain) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.Transport.RoundTrip(r)
	var cause apierrors.APIStatus
	if errors.As(err, &cause) {
		err = errors.New(cause.Status().Message)
	}
	return resp, err
}

// WrappedRoundTripper lets an upgrade find the transport's dialer.
func (p plain) WrappedRoundTripper() http.RoundTripper { return p.Transport }

// responder keeps the error of a proxied request, for the front to send.
type responder struct{ err error }

func (p *responder) Error(_ http.ResponseWriter, _ *http.Request, err error) { p.err = err }

// podBackend returns a pod's address and a port: the given one, or the first that a container
// declares.
func (s *Server) podBackend(ctx context.Context, t pipeline.Target, port string) (backend, error) {
	pod, err := podsession.Pod(ctx, s.cfg.API, t)
	if err != nil {
		return backend{}, err
	}
	for i := range pod.Spec.Containers {
		if ports := pod.Spec.Containers[i].Ports; port == "" && len(ports) > 0 {
			port = strconv.Itoa(int(ports[0].ContainerPort))
		}
	}
	if pod.Spec.NodeName == "" || pod.Status.PodIP == "" {
		return backend{}, apierrors.NewServiceUnavailable(fmt.Sprintf("pod %s has no address yet", pod.Name))
	}
	return address(pod.Spec.NodeName, pod.Status.PodIP, cmp.Or(port, "80"))
}

// address validates the address to dial: loopback and link-local addresses belong to the node.
func address(node, ip, port string) (backend, error) {
	parsed := net.ParseIP(ip)
	if parsed == nil || parsed.IsLoopback() || parsed.IsLinkLocalUnicast() || parsed.IsMulticast() || parsed.IsUnspecified() {
		return backend{}, apierrors.NewBadRequest(fmt.Sprintf("address %s not allowed", ip))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return backend{}, apierrors.NewBadRequest(fmt.Sprintf("port %q is not a port number", port))
	}
	return backend{node: node, host: net.JoinHostPort(ip, port)}, nil
}

// serviceBackend returns one of the service's ready endpoints at random, with the port that
// belongs to the service's port: by name, by number, or the only one.
func (s *Server) serviceBackend(ctx context.Context, t pipeline.Target, port string) (backend, error) {
	ctx = request.WithUser(ctx, podsession.Self)
	t.Subresource = ""
	out, err := s.cfg.API.Get(ctx, t, pipeline.GetOptions{})
	if err != nil {
		return backend{}, err
	}
	service, ok := out.Item.Object().(*corev1.Service)
	if !ok {
		return backend{}, apierrors.NewInternalError(fmt.Errorf("%s is not a service", t.Name))
	}
	none := apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", t.Name))
	portName, ok := servicePort(service, port)
	if !ok {
		return backend{}, none
	}
	list, err := s.cfg.API.List(ctx, pipeline.Target{
		Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), Namespace: t.Namespace,
	}, pipeline.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + t.Name})
	if err != nil {
		return backend{}, err
	}
	var found []backend
	for _, item := range list.Items {
		slice, ok := item.Object().(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		found = append(found, sliceBackends(slice, portName)...)
	}
	if len(found) == 0 {
		return backend{}, none
	}
	to := found[rand.IntN(len(found))]
	ip, number, err := net.SplitHostPort(to.host)
	if err != nil {
		return backend{}, apierrors.NewInternalError(err)
	}
	return address(to.node, ip, number)
}

// servicePort returns the name of a service's port, given its name or number.
func servicePort(service *corev1.Service, port string) (name string, ok bool) {
	if port == "" {
		if len(service.Spec.Ports) == 1 {
			return service.Spec.Ports[0].Name, true
		}
		return "", true
	}
	for _, p := range service.Spec.Ports {
		if p.Name == port || strconv.Itoa(int(p.Port)) == port {
			return p.Name, true
		}
	}
	return "", false
}

// sliceBackends returns the ready endpoints of a slice that run on a node.
func sliceBackends(slice *discoveryv1.EndpointSlice, portName string) []backend {
	var out []backend
	for _, p := range slice.Ports {
		if p.Port == nil || p.Name != nil && *p.Name != portName || p.Name == nil && portName != "" {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.NodeName == nil || len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			out = append(out, backend{node: *e.NodeName, host: net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port)))})
		}
	}
	return out
}
