package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/internal/ops"
)

// registerSpace registers metrics and a note for the space of this member's store st. A
// full store does not make an apiserver unready: reads and deletions go on.
func registerSpace(status *ops.Server, name string, st store.Store) {
	member, ok := store.As[interface{ Space() etcd.Space }](st)
	if !ok {
		return
	}
	status.Note(name+"-space", func() string { return member.Space().String() })
	for _, m := range []struct {
		name, help string
		read       func(etcd.Space) int64
	}{
		{"keelson_store_size_bytes", "Size of the file of this member's store.", func(s etcd.Space) int64 { return s.Size }},
		{"keelson_store_size_in_use_bytes", "What of the file of this member's store is in use.", func(s etcd.Space) int64 { return s.Used }},
		{"keelson_store_quota_bytes", "Size of the file at which the store refuses writes.", func(s etcd.Space) int64 { return s.Quota }},
		{"keelson_store_full", "1 while the store refuses writes because it is full, else 0.", func(s etcd.Space) int64 {
			if s.Full {
				return 1
			}
			return 0
		}},
	} {
		status.Registry().MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: m.name, Help: m.help, ConstLabels: prometheus.Labels{"store": name},
		}, func() float64 { return float64(m.read(member.Space())) }))
	}
}
