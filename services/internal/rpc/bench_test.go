package rpc_test

import (
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/rpc"
)

// BenchmarkUnary is a call over TLS on loopback, client and server together.
func BenchmarkUnary(b *testing.B) {
	ca := identitytest.NewCA(b)
	address, _ := serve(b, rpc.ServerConfig{Identity: ca.Source(b, "kube-apiserver")}, &backend{})
	c := dial(b, ca.Source(b, "me"), address)
	ref := &resourcev1.Ref{Version: "v1", Resource: "pods", Namespace: "default", Name: "some-pod"}
	for _, bench := range []struct {
		name string
		call func() error
	}{
		{"Get", func() error {
			_, err := c.Get(b.Context(), &resourcev1.GetRequest{Ref: ref})
			return err
		}},
		{"Create", func() error {
			_, err := c.Create(b.Context(), &resourcev1.CreateRequest{Ref: ref, Object: &anypb.Any{TypeUrl: "x/k8s.io.api.core.v1.Pod", Value: make([]byte, 2<<10)}})
			return err
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu(b)
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bench.call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu is the CPU time that this process has taken.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
