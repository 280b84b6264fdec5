package etcd

import (
	"context"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"keelson.dev/services/apiserver/internal/store"
)

// event converts an event of etcd.
func event(e *mvccpb.Event) store.Event {
	if e.Type == mvccpb.Event_DELETE {
		return store.Event{Type: store.Deleted, Entry: store.Entry{Key: string(e.Kv.Key), ModRevision: store.Revision(e.Kv.ModRevision)}}
	}
	return store.Event{Type: store.Put, Entry: entry(e.Kv)}
}

// batch converts events to a batch. Its revision is that of the last event: the one in etcd's
// header may be later, with events that have not been delivered yet.
func batch[E any](events []E, get func(E) *mvccpb.Event) store.Batch {
	b := store.Batch{Events: make([]store.Event, len(events))}
	for i, e := range events {
		b.Events[i] = event(get(e))
	}
	b.Revision = b.Events[len(events)-1].Entry.ModRevision
	return b
}

// localWatch reads the server's own watch stream. etcd holds back events that are not read from
// it, and reads them from the backend later, so that the stream does not grow.
type localWatch struct {
	stream mvcc.WatchStream
	id     mvcc.WatchID
	server *etcdserver.EtcdServer
	once   sync.Once
	closed chan struct{}
}

func watchInProcess(s *etcdserver.EtcdServer, prefix string, from int64) (store.Watch, error) {
	end := rangeEnd(prefix)
	if prefix == "" {
		end = []byte{} // here, this means all keys, and not "\x00"
	}
	stream := s.Watchable().NewWatchStream()
	id, err := stream.Watch(context.Background(), clientv3.AutoWatchID, rangeStart(prefix), end, from)
	if err != nil {
		stream.Close()
		return nil, fmt.Errorf("watch %s: %w", prefix, err)
	}
	return &localWatch{stream: stream, id: id, server: s, closed: make(chan struct{})}, nil
}

func (w *localWatch) Next(ctx context.Context) (store.Batch, error) {
	for {
		select {
		case resp, ok := <-w.stream.Chan():
			switch {
			case !ok:
				return store.Batch{}, store.ErrClosed
			case resp.CompactRevision != 0:
				return store.Batch{}, &store.CompactedError{Oldest: store.Revision(resp.CompactRevision)}
			case len(resp.Events) > 0:
				return batch(resp.Events, func(e *mvccpb.Event) *mvccpb.Event { return e }), nil
			case resp.Revision > 0:
				return store.Batch{Revision: store.Revision(resp.Revision)}, nil
			}
		case <-w.closed:
			return store.Batch{}, store.ErrClosed
		case <-w.server.StoppingNotify():
			return store.Batch{}, store.ErrClosed
		case <-ctx.Done():
			return store.Batch{}, ctx.Err()
		}
	}
}

func (w *localWatch) Progress(ctx context.Context) error {
	w.stream.RequestProgress(w.id)
	return ctx.Err()
}

func (w *localWatch) Close() {
	w.once.Do(func() {
		close(w.closed)
		w.stream.Close()
	})
}

// remoteWatch is a watch over gRPC, on its own stream.
type remoteWatch struct {
	watcher clientv3.Watcher
	ctx     context.Context
	cancel  context.CancelFunc
	ch      clientv3.WatchChan
}

func watchRemote(client *clientv3.Client, prefix string, from int64) (store.Watch, error) {
	// The watch outlives the call that starts it. A member without a quorum ends it instead of
	// leaving it without events.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(context.Background()))
	w := &remoteWatch{watcher: clientv3.NewWatcher(client), ctx: ctx, cancel: cancel}
	w.ch = w.watcher.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
	return w, nil
}

func (w *remoteWatch) Next(ctx context.Context) (store.Batch, error) {
	for {
		select {
		case resp, ok := <-w.ch:
			switch {
			case w.ctx.Err() != nil:
				return store.Batch{}, store.ErrClosed
			case !ok:
				return store.Batch{}, fmt.Errorf("watch: the stream ended")
			case resp.CompactRevision != 0:
				return store.Batch{}, &store.CompactedError{Oldest: store.Revision(resp.CompactRevision)}
			case resp.Err() != nil:
				return store.Batch{}, fmt.Errorf("watch: %w", resp.Err())
			case len(resp.Events) > 0:
				return batch(resp.Events, func(e *clientv3.Event) *mvccpb.Event { return e }), nil
			case resp.IsProgressNotify():
				return store.Batch{Revision: store.Revision(resp.Header.Revision)}, nil
			}
		case <-ctx.Done():
			return store.Batch{}, ctx.Err()
		}
	}
}

func (w *remoteWatch) Progress(ctx context.Context) error {
	// The watch's own context identifies its stream.
	if err := w.watcher.RequestProgress(w.ctx); err != nil {
		return err
	}
	return ctx.Err()
}

func (w *remoteWatch) Close() {
	w.cancel()
	_ = w.watcher.Close()
}
