package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"google.golang.org/grpc"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// connections opens n connections.
func (b *bench) connections(n int) ([]*grpc.ClientConn, func(), error) {
	conns := make([]*grpc.ClientConn, n)
	for i := range conns {
		conn, err := b.dial()
		if err != nil {
			return nil, nil, err
		}
		conns[i] = conn
	}
	return conns, func() {
		for _, c := range conns {
			c.Close()
		}
	}, nil
}

// prepare returns a new namespace and four clients.
func (b *bench) prepare(ctx context.Context) (string, []*client.Client, func(), error) {
	c, err := b.rest(ctx)
	if err != nil {
		return "", nil, nil, err
	}
	ns, err := b.namespace(ctx, c)
	if err != nil {
		return "", nil, nil, err
	}
	conns, done, err := b.connections(4)
	if err != nil {
		return "", nil, nil, err
	}
	clients := make([]*client.Client, len(conns))
	for i, conn := range conns {
		clients[i] = client.New(conn, "bench")
	}
	return ns, clients, done, nil
}

func grpcCreate(ctx context.Context, b *bench) (float64, string, error) {
	ns, clients, done, err := b.prepare(ctx)
	if err != nil {
		return 0, "", err
	}
	defer done()
	r, err := b.rate(ctx, callers, 20000, func(ctx context.Context, i int) error {
		_, err := client.For[*corev1.Pod](clients[i%len(clients)]).Create(ctx, pod(ns, fmt.Sprintf("g-%05d", i)))
		return err
	})
	return r, "20,000 pods, 64 callers", err
}

func grpcCommit(ctx context.Context, b *bench) (float64, string, error) {
	const batch, batches = 100, 200
	ns, clients, done, err := b.prepare(ctx)
	if err != nil {
		return 0, "", err
	}
	defer done()
	r, err := b.rate(ctx, 16, batches, func(ctx context.Context, i int) error {
		writes := make([]client.Write, batch)
		for j := range writes {
			writes[j] = client.CreateWrite(pod(ns, fmt.Sprintf("c-%05d-%03d", i, j)))
		}
		results, err := clients[i%len(clients)].Commit(ctx, writes...)
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil {
				return r.Err
			}
		}
		return nil
	})
	b.latest.cost /= batch
	return r * batch, "20,000 pods, batches of 100, 16 callers", err
}

func grpcGet(ctx context.Context, b *bench) (float64, string, error) {
	ns, clients, done, err := b.prepare(ctx)
	if err != nil {
		return 0, "", err
	}
	defer done()
	pods := make([]client.Resource[*corev1.Pod], len(clients))
	for i, c := range clients {
		pods[i] = client.For[*corev1.Pod](c)
	}
	for i := range 100 {
		if _, err := pods[0].Create(ctx, pod(ns, fmt.Sprintf("g-%05d", i))); err != nil {
			return 0, "", err
		}
	}
	r, err := b.rate(ctx, callers, 40000, func(ctx context.Context, i int) error {
		_, err := pods[i%len(pods)].Get(ctx, ns, fmt.Sprintf("g-%05d", i%100))
		return err
	})
	return r, "40,000 gets, 64 callers", err
}

// grpcWatch counts the frames that 1,000 streams on 10 connections receive per second.
func grpcWatch(ctx context.Context, b *bench) (float64, string, error) {
	const streams, connections, writes = 1000, 10, 400
	ns, clients, done, err := b.prepare(ctx)
	if err != nil {
		return 0, "", err
	}
	defer done()
	pods := client.For[*corev1.Pod](clients[0])
	first, err := pods.Create(ctx, pod(ns, "w-0"))
	if err != nil {
		return 0, "", err
	}
	conns, closeAll, err := b.connections(connections)
	if err != nil {
		return 0, "", err
	}
	defer closeAll()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	sent := make([]time.Time, writes)
	var mu sync.Mutex
	var delays []time.Duration
	var wg sync.WaitGroup
	errs := make([]error, streams)
	for i := range streams {
		stream, err := resourcev1.NewResourceServiceClient(conns[i%connections]).Watch(ctx, &resourcev1.WatchRequest{
			Ref: &resourcev1.Ref{Version: "v1", Resource: "pods", Namespace: ns}, ResourceVersion: first.ResourceVersion,
		})
		if err != nil {
			return 0, "", err
		}
		wg.Go(func() {
			for n := range writes {
				if _, err := stream.Recv(); err != nil {
					if errors.Is(err, io.EOF) {
						err = errors.New("the stream ended")
					}
					errs[i] = err
					return
				}
				if i%10 == 0 {
					mu.Lock()
					delays = append(delays, time.Since(sent[n]))
					mu.Unlock()
				}
			}
		})
	}
	began := time.Now()
	// There is only one writer, so that events arrive in the order of the writes.
	for i := range writes {
		mu.Lock()
		sent[i] = time.Now()
		mu.Unlock()
		if _, err := pods.Create(ctx, pod(ns, fmt.Sprintf("w-%d", i+1))); err != nil {
			return 0, "", err
		}
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, "", err
		}
	}
	r := streams * writes / time.Since(began).Seconds()
	b.quantiles(delays)
	return r, "1,000 streams on 10 connections; latencies are those of events", nil
}
