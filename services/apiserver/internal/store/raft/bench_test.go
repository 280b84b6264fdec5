package raft

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"keelson.dev/services/apiserver/internal/store"
)

// BenchmarkRenew renews leases of 400 bytes, on the leader and through a follower. Each caller
// renews its own lease repeatedly.
func BenchmarkRenew(b *testing.B) {
	for _, members := range []int{1, 3} {
		for _, callers := range []int{1, 64, 512} {
			b.Run(fmt.Sprintf("members=%d/callers=%d", members, callers), func(b *testing.B) {
				if members == 1 {
					renew(b, single(b, Config{}), callers)
					return
				}
				leader, _ := newCluster(b, members, nil).leader()
				renew(b, leader, callers)
			})
		}
	}
	b.Run("members=3/callers=512/follower", func(b *testing.B) {
		_, followers := newCluster(b, 3, nil).leader()
		renew(b, followers[0], 512)
	})
}

func renew(b *testing.B, s *Store, callers int) {
	value := make([]byte, 400)
	at := make([]store.Revision, callers)
	for i := range at {
		at[i] = put(b, s, fmt.Sprintf("/registry/leases/kube-node-lease/n%d", i), "x")
	}
	var next atomic.Int64
	took := make([][]time.Duration, callers)
	via := s.proposals
	if s.raft.State() != hraft.Leader {
		via = s.forwards
	}
	entries := via.sent.Load()
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for i := range callers {
		wg.Go(func() {
			key := fmt.Sprintf("/registry/leases/kube-node-lease/n%d", i)
			for next.Add(1) <= int64(b.N) {
				began := time.Now()
				v, err := s.Commit(context.Background(), []store.Write{{Key: key, Value: value, Expect: at[i]}})
				if err != nil || v[0].Err != nil {
					b.Error(err, v)
					return
				}
				at[i] = v[0].Revision
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "renewals/s")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(b.N)/float64(via.sent.Load()-entries), "renewals/entry")
}

// BenchmarkRevision reads the revision, as every consistent read does.
func BenchmarkRevision(b *testing.B) {
	read := func(b *testing.B, s *Store) {
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := s.Revision(context.Background()); err != nil {
					b.Error(err)
				}
			}
		})
	}
	b.Run("members=1", func(b *testing.B) { read(b, single(b, Config{})) })
	b.Run("members=3/leader", func(b *testing.B) {
		leader, _ := newCluster(b, 3, nil).leader()
		read(b, leader)
	})
	b.Run("members=3/follower", func(b *testing.B) {
		_, followers := newCluster(b, 3, nil).leader()
		read(b, followers[0])
	})
}

// BenchmarkIdle measures the CPU time of a second without writes, while there are entries that
// will expire.
func BenchmarkIdle(b *testing.B) {
	idle := func(b *testing.B, s *Store) {
		if v, err := s.Commit(context.Background(), []store.Write{{Key: "/a", Value: []byte("x"), Expect: store.Any, TTLSeconds: 3600}}); err != nil || v[0].Err != nil {
			b.Fatal(err, v)
		}
		var before, after syscall.Rusage
		for b.Loop() {
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			<-time.After(5 * time.Second)
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		}
		used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
		b.ReportMetric(float64(used.Microseconds())/1000/5, "cpu-ms/s")
	}
	b.Run("members=1", func(b *testing.B) { idle(b, single(b, Config{})) })
	b.Run("members=3", func(b *testing.B) {
		leader, _ := newCluster(b, 3, nil).leader()
		idle(b, leader)
	})
}

// BenchmarkStart opens a member that was closed.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	s := single(b, Config{Dir: dir})
	for i := range 1000 {
		put(b, s, fmt.Sprint("/", i%100), "x")
	}
	s.Close()
	for b.Loop() {
		s := single(b, Config{Dir: dir})
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkTakeover measures the time from the loss of a leader to the next acknowledgement.
func BenchmarkTakeover(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		c := newCluster(b, 3, nil)
		leader, followers := c.leader()
		put(b, followers[0], "/a", "1")
		c.isolate(leader.cfg.Name)
		began := time.Now()
		put(b, followers[0], "/a", "2")
		took = append(took, time.Since(began))
		for _, name := range c.names {
			c.stop(name)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "max-ms")
}

// BenchmarkReadYourWrite writes through one follower and reads from the other.
func BenchmarkReadYourWrite(b *testing.B) {
	_, followers := newCluster(b, 3, nil).leader()
	var took []time.Duration
	for b.Loop() {
		put(b, followers[0], "/a", "x")
		began := time.Now()
		if _, _, err := followers[1].Get(context.Background(), "/a"); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "read-p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "read-p99-ms")
}
