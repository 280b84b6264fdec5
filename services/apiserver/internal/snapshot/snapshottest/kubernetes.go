// Package snapshottest creates snapshots of a Kubernetes cluster's etcd: a plain etcd server
// with objects under Kubernetes' keys and in Kubernetes' own encoding (its protobuf
// serializer), saved by the function that `etcdctl snapshot save` calls. No kube-apiserver
// takes part. The package must not be linked into a program.
package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// Kubernetes is the etcd of a Kubernetes cluster.
type Kubernetes struct {
	testing.TB
	Client *clientv3.Client
	config clientv3.Config
}

// New starts an etcd server on loopback, which stops when the test ends.
func New(t testing.TB) *Kubernetes {
	t.Helper()
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(t.TempDir(), "etcd")
	any := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{any}, []url.URL{any}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("etcd is not ready")
	}
	k := &Kubernetes{TB: t, config: clientv3.Config{Endpoints: []string{e.Clients[0].Addr().String()}, Logger: zap.NewNop()}}
	if k.Client, err = clientv3.New(k.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Client.Close() })
	return k
}

var encoder = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)

// Encode returns an object as Kubernetes stores it.
func Encode(t testing.TB, obj runtime.Object, version schema.GroupVersion) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := scheme.Codecs.EncoderForVersion(encoder, version).Encode(obj, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Put writes a value. If ttl (in seconds) is positive, the value expires.
func (k *Kubernetes) Put(key string, value []byte, ttl int64) {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var opts []clientv3.OpOption
	if ttl > 0 {
		lease, err := k.Client.Grant(ctx, ttl)
		if err != nil {
			k.Fatal(err)
		}
		opts = append(opts, clientv3.WithLease(lease.ID))
	}
	if _, err := k.Client.Put(ctx, key, string(value), opts...); err != nil {
		k.Fatal(err)
	}
}

// RequirePassword turns on authentication. Save uses the password.
func (k *Kubernetes) RequirePassword() {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	k.config.Username, k.config.Password = "root", "secret"
	_, role := k.Client.RoleAdd(ctx, "root")
	_, user := k.Client.UserAdd(ctx, "root", k.config.Password)
	_, grant := k.Client.UserGrantRole(ctx, "root", "root")
	_, enable := k.Client.AuthEnable(ctx)
	if err := errors.Join(role, user, grant, enable); err != nil {
		k.Fatal(err)
	}
}

// Save writes the file that `etcdctl snapshot save` writes, and returns its path.
func (k *Kubernetes) Save() string {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path := filepath.Join(k.TempDir(), "kubernetes.snapshot")
	if _, err := snapshot.SaveWithVersion(ctx, zap.NewNop(), k.config, path); err != nil {
		k.Fatal(err)
	}
	return path
}
