package etcd

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/store"
)

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		e := embedded(b, EmbeddedConfig{})
		b.StopTimer()
		e.Close()
		b.StartTimer()
	}
}

func BenchmarkRestart(b *testing.B) {
	dir := b.TempDir()
	embedded(b, EmbeddedConfig{Dir: dir}).Close()
	for b.Loop() {
		e := embedded(b, EmbeddedConfig{Dir: dir})
		b.StopTimer()
		e.Close()
		b.StartTimer()
	}
}

func BenchmarkRevision(b *testing.B) {
	e := embedded(b, EmbeddedConfig{})
	b.SetParallelism(32)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, err := e.Revision(context.Background()); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkMembers writes values of 1 KiB through the leader, and through a follower, of three
// members on this machine.
func BenchmarkMembers(b *testing.B) {
	s := newSite(b, "a", "b", "c")
	s.start("a", "b", "c")
	for role, name := range map[string]string{"leader": s.leader(), "follower": s.follower(s.leader())} {
		for _, callers := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("%s/callers=%d", role, callers), func(b *testing.B) {
				e := s.at(name)
				value := make([]byte, 1024)
				var next atomic.Int64
				run := time.Now().UnixNano()
				began := time.Now()
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
							v, err := e.Commit(context.Background(), []store.Write{{Key: fmt.Sprintf("/bench/%d/%d", run, n), Value: value}})
							if err != nil || v[0].Err != nil {
								b.Error(err, v)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "writes/s")
			})
		}
	}
}

// BenchmarkCommit writes values of 1 KiB while one watch follows. Fenced writes compare one
// more key.
func BenchmarkCommit(b *testing.B) {
	for _, c := range []struct {
		callers, batch int
		fenced         bool
	}{{1, 1, false}, {64, 1, false}, {64, 1, true}, {512, 1, false}, {1, 100, false}, {8, 100, false}, {8, 100, true}} {
		name := fmt.Sprintf("callers=%d/batch=%d", c.callers, c.batch)
		if c.fenced {
			name += "/fenced"
		}
		b.Run(name, func(b *testing.B) {
			e := embedded(b, EmbeddedConfig{})
			var fence *store.Fence
			if c.fenced {
				v, err := e.Commit(context.Background(), []store.Write{{Key: "/keelson/fence/ns/bench", Value: []byte("x")}})
				if err != nil || v[0].Err != nil {
					b.Fatal(err, v)
				}
				fence = &store.Fence{Key: "/keelson/fence/ns/bench", ModRevision: v[0].Revision}
			}
			w, err := e.Watch(context.Background(), "/", 0)
			if err != nil {
				b.Fatal(err)
			}
			var seen atomic.Int64
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					batch, err := w.Next(context.Background())
					if err != nil {
						return
					}
					seen.Add(int64(len(batch.Events)))
				}
			}()
			value := make([]byte, 1024)
			var next, written atomic.Int64
			began := time.Now()
			var wg sync.WaitGroup
			b.ResetTimer()
			for range c.callers {
				wg.Go(func() {
					for next.Add(int64(c.batch)) <= int64(b.N*c.batch) {
						writes := make([]store.Write, c.batch)
						for i := range writes {
							writes[i] = store.Write{Key: fmt.Sprintf("/registry/pods/default/%d", written.Add(1)), Value: value, Fence: fence}
						}
						v, err := e.Commit(context.Background(), writes)
						if err != nil {
							b.Error(err)
							return
						}
						for _, v := range v {
							if v.Err != nil {
								b.Error(v.Err)
							}
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(written.Load())/time.Since(began).Seconds(), "writes/s")
			w.Close()
			<-ended
		})
	}
}

// BenchmarkDefragment reports what small writes, one after another, notice of the
// defragmentation of a file half of which is free: the longest write, and the 99th
// percentile of those in two seconds around it.
func BenchmarkDefragment(b *testing.B) {
	const objects, size = 4000, 16 << 10 // 64 MiB stay, and as much goes
	var most, p99 time.Duration
	for b.Loop() {
		b.StopTimer()
		e := embedded(b, EmbeddedConfig{})
		v := value(size)
		for range 2 {
			var batch []store.Write
			for i := range objects {
				batch = append(batch, store.Write{Key: fmt.Sprintf("/registry/bench/%05d", i), Value: v, Expect: store.Any})
			}
			if _, err := e.Commit(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
		}
		rev, err := e.Revision(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Compact(b.Context(), rev); err != nil {
			b.Fatal(err)
		}
		var took []time.Duration
		done := make(chan struct{})
		var end time.Time
		go func() {
			defer close(done)
			for i := 0; end.IsZero() || time.Now().Before(end); i++ {
				began := time.Now()
				if err := write(b.Context(), e, fmt.Sprint("/registry/small/", i%100), []byte("x")); err != nil {
					b.Error(err)
				}
				took = append(took, time.Since(began))
				if i == 1000 {
					end = time.Now().Add(2 * time.Second)
					go func() {
						if err := e.Defragment(); err != nil {
							b.Error(err)
						}
					}()
				}
			}
		}()
		b.StartTimer()
		<-done
		b.StopTimer()
		e.Close()
		slices.Sort(took)
		most, p99 = max(most, took[len(took)-1]), max(p99, took[len(took)*99/100])
		b.StartTimer()
	}
	b.ReportMetric(float64(most.Milliseconds()), "ms-longest")
	b.ReportMetric(float64(p99.Microseconds()), "µs-p99")
}
