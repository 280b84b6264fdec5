package stream

import (
	"net/http"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/front/podsession"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// kubeletPort is the port by which clients name a node's own API, as on Kubernetes' nodes.
const kubeletPort = "10250"

// finerResources are the subresources of nodes that the kubelet's own authorization demands for
// the first part of a path (KEP-2862), instead of nodes/proxy.
var finerResources = map[string]string{
	"stats": "stats", "metrics": "metrics", "logs": "log", "checkpoint": "checkpoint",
	"pods": "pods", "runningpods": "pods", "allocatedPods": "pods",
	"healthz": "healthz", "configz": "configz", "flagz": "configz", "statusz": "statusz",
}

// finer returns the target that stands for the path of a proxy to a node's own API, with an empty
// subresource if there is none. A right to it suffices where nodes/proxy is refused, so that a
// scraper needs no more than it needs at a kubelet.
func finer(q Request) pipeline.Target {
	t := q.Target
	t.Subresource = ""
	if q.Connect != resource.Proxy || t.Resource.Group != "" || t.Resource.Resource != "nodes" || path.Clean("/"+q.Rest) != "/"+strings.TrimSuffix(q.Rest, "/") {
		return t
	}
	_, name, port, err := splitTarget(t)
	if err != nil || port != "" && port != kubeletPort {
		return t
	}
	first, _, _ := strings.Cut(q.Rest, "/")
	t.Name, t.Subresource = name, finerResources[first]
	return t
}

// nodeProxy forwards an HTTP request to a node: to its read API or, if the user may use all of
// nodes/proxy, to another port of its address.
func (s *Server) nodeProxy(w http.ResponseWriter, r *http.Request, t pipeline.Target, rest string, all bool) error {
	scheme, name, port, err := splitTarget(t)
	if err != nil {
		return err
	}
	t.Name, t.Subresource = name, ""
	out, err := s.cfg.API.Get(request.WithUser(r.Context(), podsession.Self), t, pipeline.GetOptions{})
	if err != nil {
		return err
	}
	if port == "" || port == kubeletPort {
		return s.forward(w, r, "http", backend{node: name, host: name, api: true}, rest)
	}
	node, ok := out.Item.Object().(*corev1.Node)
	if !ok || !all {
		return apierrors.NewBadRequest("only the node's own API is served here")
	}
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		to, err := address(name, a.Address, port)
		if err != nil {
			return err
		}
		return s.forward(w, r, scheme, to, rest)
	}
	return apierrors.NewServiceUnavailable("node " + name + " has no internal address")
}
