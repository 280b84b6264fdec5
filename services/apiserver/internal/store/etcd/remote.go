package etcd

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/services/apiserver/internal/seldom"
	"keelson.dev/services/apiserver/internal/store"
)

// RemoteConfig describes how to reach an etcd at another place.
type RemoteConfig struct {
	// Endpoints are its members. Calls are balanced over them, and those that do not answer are
	// skipped.
	Endpoints []string
	// TLS is the configuration of the connections.
	TLS *tls.Config
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// Remote is a store in an etcd at another place.
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
		DialKeepAliveTimeout: 2 * time.Second, // also for data that was sent and not acknowledged
		Logger:               zap.New(slogCore{log: c.Log, seldom: new(seldom.Log)}),
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

// overWire returns a transport that calls etcd over gRPC. The client library retries reads, but
// writes only if they cannot have been sent.
func overWire(client *clientv3.Client) transport {
	kv := clientv3.RetryKVClient(client)
	return transport{
		kv:    leaderKV{kv},
		lease: client.Lease,
		revision: func(ctx context.Context) (int64, error) {
			ctx = clientv3.WithRequireLeader(ctx)
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

// leaderKV makes members without a leader fail instead of waiting for one, because another
// member may have it.
type leaderKV struct{ pb.KVClient }

func (k leaderKV) Range(ctx context.Context, r *pb.RangeRequest, o ...grpc.CallOption) (*pb.RangeResponse, error) {
	return k.KVClient.Range(clientv3.WithRequireLeader(ctx), r, o...)
}

func (k leaderKV) Txn(ctx context.Context, r *pb.TxnRequest, o ...grpc.CallOption) (*pb.TxnResponse, error) {
	return k.KVClient.Txn(clientv3.WithRequireLeader(ctx), r, o...)
}

func (k leaderKV) Put(ctx context.Context, r *pb.PutRequest, o ...grpc.CallOption) (*pb.PutResponse, error) {
	return k.KVClient.Put(clientv3.WithRequireLeader(ctx), r, o...)
}

// Close closes the connection. Calls in progress fail.
func (r *Remote) Close() {
	if !r.closed.Swap(true) {
		_ = r.client.Close()
	}
}
