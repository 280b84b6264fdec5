package rest

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"keelson.dev/services/apiserver/internal/front/rest/route"
)

// metrics of the front, with Kubernetes' names where it has them.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	sizes    *prometheus.HistogramVec
	long     *prometheus.GaugeVec
	panics   prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Requests by verb, resource and status code.",
		}, []string{"verb", "group", "version", "resource", "subresource", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Time to the end of the response, without watches and streams.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"verb", "group", "resource", "subresource"}),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_response_sizes", Help: "Sizes of list responses in bytes.",
			Buckets: prometheus.ExponentialBuckets(1000, 10, 7),
		}, []string{"verb", "group", "resource"}),
		long: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests", Help: "Watches and streams in progress.",
		}, []string{"verb", "group", "resource", "subresource"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apiserver_request_panics_total", Help: "Requests whose handler panicked.",
		}),
	}
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.sizes, m.long, m.panics)
	}
	return m
}

// labels returns the labels of a request. Names that are not in the table are omitted, so that
// arbitrary paths create no series.
func (x *exchange) labels() (verb, group, version, resource, subresource string) {
	if x.kind == nil {
		if x.path.Form == route.Resource {
			return "other", "", "", "", ""
		}
		return "path", "", "", "", ""
	}
	if _, ok := x.kind.Subresources[x.path.Subresource]; ok {
		subresource = x.path.Subresource
	}
	if verb = x.verb; verb == "" {
		verb = "other"
	}
	return verb, x.kind.GVK.Group, x.kind.GVK.Version, x.kind.Resource, subresource
}

// observe records a request that has ended.
func (m *metrics) observe(x *exchange, took time.Duration) {
	verb, group, version, resource, subresource := x.labels()
	code := x.code
	if code == 0 {
		code = 200
	}
	m.requests.WithLabelValues(verb, group, version, resource, subresource, strconv.Itoa(code)).Inc()
	if x.long {
		return
	}
	m.seconds.WithLabelValues(verb, group, resource, subresource).Observe(took.Seconds())
	if verb == "list" {
		m.sizes.WithLabelValues(verb, group, resource).Observe(float64(x.size))
	}
}

// running counts a watch or stream until the returned function is called.
func (m *metrics) running(x *exchange) func() {
	x.long = true
	verb, group, _, resource, subresource := x.labels()
	g := m.long.WithLabelValues(verb, group, resource, subresource)
	g.Inc()
	return g.Dec
}
