package etcd

import (
	"context"
	"fmt"
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

// BenchmarkCommit writes values of 1 KiB while one watch follows.
func BenchmarkCommit(b *testing.B) {
	for _, c := range []struct{ callers, batch int }{{1, 1}, {64, 1}, {512, 1}, {1, 100}, {8, 100}} {
		b.Run(fmt.Sprintf("callers=%d/batch=%d", c.callers, c.batch), func(b *testing.B) {
			e := embedded(b, EmbeddedConfig{})
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
							writes[i] = store.Write{Key: fmt.Sprintf("/registry/pods/default/%d", written.Add(1)), Value: value}
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
