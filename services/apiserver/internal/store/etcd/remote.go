package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"go.uber.org/zap"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/services/apiserver/internal/store"
)

// RemoteConfig says how to reach an etcd that runs elsewhere.
type RemoteConfig struct {
	Endpoints []string
	TLS       *tls.Config
	Log       *slog.Logger
}

// Remote is a store in an etcd that runs elsewhere.
type Remote struct {
	*Store
	client *clientv3.Client
}

// Dial connects to etcd and waits until it answers.
func Dial(ctx context.Context, c RemoteConfig) (*Remote, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            c.Endpoints,
		TLS:                  c.TLS,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.New(slogCore{log: c.Log}),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd at %v: %w", c.Endpoints, err)
	}
	r := &Remote{Store: newStore(overWire(client), forwardTime, c.Log), client: client}
	if _, err := r.Revision(ctx); err != nil {
		_ = client.Close()
		return nil, fmt.Errorf("etcd at %v: %w", c.Endpoints, err)
	}
	return r, nil
}

// overWire speaks gRPC. Reads are retried by the client library; writes are not,
// but where they cannot have been sent.
func overWire(client *clientv3.Client) transport {
	kv := clientv3.RetryKVClient(client)
	return transport{
		kv:    kv,
		lease: client.Lease,
		revision: func(ctx context.Context) (int64, error) {
			resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("/keelson/none"), CountOnly: true})
			if err != nil {
				return 0, err
			}
			return resp.Header.Revision, nil
		},
		watch: func(_ context.Context, prefix string, from int64) (store.Watch, error) {
			return watchRemote(client, prefix, from)
		},
	}
}

// Close ends the connection. Calls under way fail.
func (r *Remote) Close() {
	if !r.closed.Swap(true) {
		_ = r.client.Close()
	}
}
