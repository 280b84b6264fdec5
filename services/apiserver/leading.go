package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"keelson.dev/services/apiserver/internal/store"
)

// registerLeading registers a metric for whether this member leads the store st.
func registerLeading(r prometheus.Registerer, name string, st store.Store) {
	member, ok := store.As[interface{ Leads() bool }](st)
	if !ok {
		return
	}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "keelson_store_leader", Help: "1 while this member leads the store, as far as it knows, else 0.",
		ConstLabels: prometheus.Labels{"store": name},
	}, func() float64 {
		if member.Leads() {
			return 1
		}
		return 0
	}))
}
