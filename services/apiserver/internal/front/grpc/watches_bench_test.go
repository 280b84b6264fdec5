package grpc_test

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// benchServer makes TestServer the server of a benchmark, in a process of its own.
const benchServer = "KEELSON_BENCH_SERVER"

// TestServer is nothing but the server of BenchmarkWatches. It answers each line of its input with
// its memory in use in bytes, and the CPU time that it has taken.
func TestServer(t *testing.T) {
	if os.Getenv(benchServer) == "" {
		return
	}
	fmt.Println(serve(t))
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		fmt.Println(m.HeapInuse+m.StackInuse, u.Utime.Nano()+u.Stime.Nano())
	}
}

// measured is a server in a process of its own.
type measured struct {
	b       *testing.B
	address string
	in      io.Writer
	out     *bufio.Reader
}

func startMeasured(b *testing.B) *measured {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run", "^TestServer$")
	cmd.Env = append(os.Environ(), benchServer+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	m := &measured{b: b, in: in, out: bufio.NewReader(out)}
	if _, err := fmt.Fscanln(m.out, &m.address); err != nil {
		b.Fatal(err)
	}
	return m
}

func (m *measured) figures() (memory int64, cpu time.Duration) {
	m.b.Helper()
	if _, err := fmt.Fprintln(m.in); err != nil {
		m.b.Fatal(err)
	}
	if _, err := fmt.Fscanln(m.out, &memory, &cpu); err != nil {
		m.b.Fatal(err)
	}
	return memory, cpu
}

// BenchmarkWatches compares 10,000 watches of a collection over 10 connections, each on a stream of
// its own or 1,000 on one. One round is one change that all of them receive. Memory and CPU time are
// those of the server.
func BenchmarkWatches(b *testing.B) {
	const connections, each = 10, 1000
	for _, mode := range []string{"plain", "many"} {
		b.Run(mode, func(b *testing.B) {
			m := startMeasured(b)
			var received atomic.Int64
			var began sync.WaitGroup
			began.Add(connections * each)
			got := func(ev *resourcev1.WatchResponse) {
				if ev.GetInitialEventsEnd() {
					began.Done()
				} else {
					received.Add(1)
				}
			}
			writer := dial(b, m.address)
			obj, err := client.For[*corev1.ConfigMap](writer).Create(b.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "m"}})
			if err != nil {
				b.Fatal(err)
			}
			before, _ := m.figures()
			for range connections {
				rpc := resourcev1.NewResourceServiceClient(dial(b, m.address).Conn())
				if mode == "many" {
					stream, err := rpc.WatchMany(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					go func() {
						for {
							r, err := stream.Recv()
							if err != nil {
								return
							}
							got(r.GetEvent())
						}
					}()
					for id := range uint32(each) {
						add := &resourcev1.AddWatch{Id: id + 1, Credits: math.MaxUint32, Watch: &resourcev1.WatchRequest{Ref: maps("bench"), SendInitialEvents: true}}
						if err := stream.Send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Add{Add: add}}); err != nil {
							b.Fatal(err)
						}
					}
					continue
				}
				for range each {
					stream, err := rpc.Watch(b.Context(), &resourcev1.WatchRequest{Ref: maps("bench"), SendInitialEvents: true})
					if err != nil {
						b.Fatal(err)
					}
					go func() {
						for {
							ev, err := stream.Recv()
							if err != nil {
								return
							}
							got(ev)
						}
					}()
				}
			}
			began.Wait()
			after, cpu := m.figures()
			obj.Namespace, obj.Name = "bench", "m"
			obj.UID, obj.ResourceVersion = "", ""
			obj.Data = map[string]string{"k": string(make([]byte, 500))}
			rounds := int64(0)
			for b.Loop() {
				if rounds == 0 {
					obj, err = client.For[*corev1.ConfigMap](writer).Create(b.Context(), obj)
				} else {
					obj.Data["n"] = fmt.Sprint(rounds)
					obj, err = client.For[*corev1.ConfigMap](writer).Update(b.Context(), obj)
				}
				if err != nil {
					b.Fatal(err)
				}
				rounds++
				for received.Load() < rounds*connections*each {
					runtime.Gosched()
				}
			}
			_, used := m.figures()
			b.ReportMetric(float64(after-before)/(connections*each), "B/watch")
			b.ReportMetric(float64(used-cpu)/float64(rounds*connections*each), "cpu-ns/event")
		})
	}
}
