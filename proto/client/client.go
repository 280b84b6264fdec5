// Package client is the typed Go client of a Keelson cluster: Kubernetes'
// objects over ResourceService, with generics, and a list-and-watch [Cache] with
// indexes.
//
// Errors are *k8s.io/apimachinery/pkg/api/errors.StatusError wherever the server
// sent a Status, so that apierrors.IsNotFound and its kin work.
//
// It must never retry a write whose repetition could do something else than the
// first attempt: an unknown outcome is returned as the error it was.
package client

import (
	"crypto/tls"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"google.golang.org/grpc"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Object is any object of Kubernetes' API in its Go type, for instance
// *corev1.Pod.
type Object interface {
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// Config says how to reach a cluster.
type Config struct {
	// Endpoints are the host:port of the apiservers' gRPC ports. Calls are
	// balanced over those that answer.
	Endpoints []string
	// TLS holds the client certificate, if any, and the cluster's CA.
	TLS *tls.Config
	// Token, if set, is called for each RPC and sent as a bearer token.
	Token func() (string, error)
	// UserAgent names the program; its first part is the default field manager.
	UserAgent string
	// DialOptions are added to the connection's own (tracing, for instance).
	DialOptions []grpc.DialOption
}

// Client speaks to a cluster. It is safe for concurrent use.
type Client struct {
	rpc  resourcev1.ResourceServiceClient
	conn *grpc.ClientConn
}
