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

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
)

// backend is where a proxied request goes.
type backend struct {
	node string // whose network the address is dialled from
	host string // address:port
}

// proxy passes an HTTP request on to a port of a pod or of one of a service's
// endpoints, dialled by the node that it runs on. rest is the path there. The
// name may be NAME, NAME:PORT or SCHEME:NAME:PORT.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, t pipeline.Target, rest string) error {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(t.Name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid %s request %q", strings.TrimSuffix(t.Resource.Resource, "s"), t.Name))
	}
	t.Name = name
	var (
		to  backend
		err error
	)
	switch t.Resource.Resource {
	case "pods":
		to, err = s.podBackend(r.Context(), t, port)
	case "services":
		to, err = s.serviceBackend(r.Context(), t, port)
	default:
		return unavailable("proxy")
	}
	if err != nil {
		return err
	}
	location := &url.URL{Scheme: cmp.Or(scheme, "http"), Host: to.host}
	if rest != "" {
		location.Path = "/" + rest
	}
	r = r.Clone(r.Context())
	for header := range r.Header { // credentials are for this server alone
		if header == "Authorization" || strings.HasPrefix(header, "Impersonate-") {
			delete(r.Header, header)
		}
	}
	transport := &http.Transport{
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			return s.cfg.Tunnel.Dial(r.Context(), to.node, address)
		},
		DisableKeepAlives: true,
		// As Kubernetes has it: pods' certificates are of no known authority.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec
	}
	responder := &responder{}
	proxy.NewUpgradeAwareHandler(location, plain{transport}, true, false, responder).ServeHTTP(w, r)
	return responder.err
}

// plain tells the node's own reason where a connection fails, without the words of
// net/http around it: whether a refusal is noticed by a write or a read is chance.
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

// WrappedRoundTripper lets an upgrade find the transport's dialler.
func (p plain) WrappedRoundTripper() http.RoundTripper { return p.Transport }

// responder keeps the failure of a proxied request for the front to answer with.
type responder struct{ err error }

func (p *responder) Error(_ http.ResponseWriter, _ *http.Request, err error) { p.err = err }

// podBackend is a pod's address and a port: the one named, or the first that a
// container declares.
func (s *Server) podBackend(ctx context.Context, t pipeline.Target, port string) (backend, error) {
	pod, err := s.pod(ctx, t)
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

// address checks what is to be dialled: a node's loopback and link are its own.
func address(node, ip, port string) (backend, error) {
	parsed := net.ParseIP(ip)
	if parsed == nil || parsed.IsLoopback() || parsed.IsLinkLocalUnicast() || parsed.IsMulticast() || parsed.IsUnspecified() {
		return backend{}, apierrors.NewBadRequest(fmt.Sprintf("address %s not allowed", ip))
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return backend{}, apierrors.NewBadRequest(fmt.Sprintf("port %q is none", port))
	}
	return backend{node: node, host: net.JoinHostPort(ip, port)}, nil
}

// serviceBackend is one of the service's ready endpoints, by chance, and the port
// that stands for the service's: by name, by number, or the only one.
func (s *Server) serviceBackend(ctx context.Context, t pipeline.Target, port string) (backend, error) {
	ctx = request.WithUser(ctx, self)
	t.Subresource = ""
	out, err := s.cfg.API.Get(ctx, t, pipeline.GetOptions{})
	if err != nil {
		return backend{}, err
	}
	service, ok := out.Item.Object.(*corev1.Service)
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
		slice, ok := item.Object.(*discoveryv1.EndpointSlice)
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

// servicePort finds the name of a service's port by name or number.
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

// sliceBackends are the ready endpoints of a slice that run on a node.
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
