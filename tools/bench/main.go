// Command bench measures a Keelson apiserver, and a whole control plane with simulated nodes,
// from outside. It prints each figure next to that of Kubernetes 1.37 on a machine with two
// cores (see docs/figures.md).
//
//	bench --bin DIR [--against DIR | --kubernetes DIR] [--only NAME,…] [--rounds 3]
//
// Next to each figure is the CPU time that the servers spent per request, on which the
// clients on the same machine and its speed have little influence. With --against, the programs
// of another directory and those of --bin run alternately, and the lowest CPU times of both are
// compared. With --kubernetes, so do kube-apiserver, kube-scheduler, kube-controller-manager and
// etcd of a directory, under the same client; throughput, latencies and memory are compared,
// too.
//
// Everything runs on this machine, including the clients. Figures vary between machines:
// compare only ratios that were measured in one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// figure is one row of the table.
type figure struct {
	name string
	// kubernetes is the figure of Kubernetes, or 0 if there is none.
	kubernetes float64
	// floor and target are Keelson's own limits. less means that smaller is better.
	floor, target float64
	unit          string
	less          bool
	measure       func(ctx context.Context, b *bench) (float64, string, error)
}

var figures = []figure{
	{"start", 3050, 1000, 700, "ms", true, measureStart},
	{"rest-create", 586, 1200, 3000, "/s", false, restCreate},
	{"rest-get", 2021, 4000, 8000, "/s", false, restGet},
	{"rest-update", 0, 0, 0, "/s", false, restUpdate},
	{"rest-patch", 486, 1000, 3000, "/s", false, restPatch},
	{"rest-list-p50", 348, 250, 150, "ms", true, restList},
	{"rest-lease-renew", 1049, 0, 5000, "/s", false, restLease},
	{"rest-delete", 0, 0, 6000, "/s", false, restDelete},
	{"grpc-create", 0, 0, 9000, "/s", false, grpcCreate},
	{"grpc-commit", 0, 0, 15000, "/s", false, grpcCommit},
	{"grpc-get", 0, 0, 0, "/s", false, grpcGet},
	{"rest-watch-fanout", 30800, 0, 60000, "events/s", false, restWatch},
	{"grpc-watch-fanout", 0, 0, 100000, "events/s", false, grpcWatch},
	{"schedule-rest", 147, 500, 1500, "pods/s", false, scheduleREST},
	{"idle", 577, 160, 120, "MB", true, measureIdle},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the programs to measure")
	flag.StringVar(&o.against, "against", "", "directory of other programs of Keelson to compare with")
	flag.StringVar(&o.kubernetes, "kubernetes", "", "directory of Kubernetes' programs and etcd to compare with")
	flag.StringVar(&o.only, "only", "", "names of figures, comma-separated (default: all)")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each system is measured in a comparison")
	flag.IntVar(&o.nodes, "nodes", 1000, "simulated nodes of the figure schedule-rest")
	flag.IntVar(&o.pods, "pods", 5000, "pods of the figure schedule-rest")
	flag.Parse()
	if err := o.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// options are the program's flags.
type options struct {
	bin, against, kubernetes, only string
	rounds, nodes, pods            int
}

func (o *options) run(ctx context.Context) error {
	for _, name := range strings.Split(o.only, ",") {
		if name != "" && !slices.ContainsFunc(figures, func(f figure) bool { return f.name == name }) {
			return fmt.Errorf("--only: there is no figure %q", name)
		}
	}
	if o.rounds < 1 || o.nodes < 1 || o.pods < 1 {
		return errors.New("--rounds, --nodes and --pods must be at least 1")
	}
	for _, dir := range []*string{&o.bin, &o.against, &o.kubernetes} {
		var err error
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	switch {
	case o.against != "" && o.kubernetes != "":
		return errors.New("--against and --kubernetes exclude each other")
	case o.against != "":
		return o.compare(ctx, [2]system{keelsonDir(o.bin), keelsonDir(o.against)}, [2]string{"BIN", "AGAINST"})
	case o.kubernetes != "":
		return o.compare(ctx, [2]system{keelsonDir(o.bin), kubernetesDir(o.kubernetes)}, [2]string{"KEELSON", "KUBERNETES"})
	default:
		return o.table(ctx)
	}
}

// wanted reports whether the figure was asked for.
func (o *options) wanted(f figure) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), f.name)
}

// table measures Keelson and prints its figures next to constants.
func (o *options) table(ctx context.Context) error {
	b, err := newBench(keelsonDir(o.bin), o.nodes, o.pods)
	if err != nil {
		return err
	}
	defer b.close()
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "FIGURE\tKEELSON\tSERVER CPU\tKUBERNETES 1.37\tRATIO\tFLOOR\tTARGET\t\t")
	for _, f := range figures {
		if !o.wanted(f) {
			continue
		}
		m, err := b.measure(ctx, f)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%.0f %s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", f.name, m.rate, f.unit, micros(m.cost), optional(f.kubernetes), ratio(f, m.rate), optional(f.floor), optional(f.target), m.note)
	}
	return w.Flush()
}

// measure measures one figure.
func (b *bench) measure(ctx context.Context, f figure) (measured, error) {
	began := time.Now()
	b.latest = measured{}
	var err error
	b.latest.rate, b.latest.note, err = f.measure(ctx, b)
	if err != nil {
		return measured{}, fmt.Errorf("%s: %w", f.name, err)
	}
	fmt.Fprintf(os.Stderr, "%s: %.0f %s, %s (%s, took %.1fs)\n", f.name, b.latest.rate, f.unit, micros(b.latest.cost), b.latest.note, time.Since(began).Seconds())
	return b.latest, nil
}

// compare measures the figures with two systems alternately, each time with a new data
// directory, and prints the best values of each.
func (o *options) compare(ctx context.Context, systems [2]system, names [2]string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "FIGURE\tMEASURE\t%s\t%s\tRATIO\t\n", names[0], names[1])
	for _, f := range figures {
		_, foreign := systems[1].(kubernetesDir)
		if !o.wanted(f) || foreign && strings.HasPrefix(f.name, "grpc-") {
			continue
		}
		var best [2]measured
		for round := range 2 * o.rounds {
			// The order is a b b a a b, so that neither is always second.
			which := (round + 1) / 2 % 2
			fmt.Fprintf(os.Stderr, "%s ", strings.ToLower(names[which]))
			m, err := o.once(ctx, systems[which], f)
			if err != nil {
				return fmt.Errorf("%s: %w", names[which], err)
			}
			best[which] = better(best[which], m, f.less)
		}
		row := func(measure, a, b string, ratio float64) {
			if ratio > 0 && !math.IsInf(ratio, 0) {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.2f\t\n", f.name, measure, a, b, ratio)
			}
		}
		a, b := best[0], best[1]
		row("server CPU", micros(a.cost), micros(b.cost), float64(a.cost)/float64(b.cost))
		if a.memory == 0 || a.cost > 0 {
			row("value", fmt.Sprintf("%.0f %s", a.rate, f.unit), fmt.Sprintf("%.0f %s", b.rate, f.unit), a.rate/b.rate)
		}
		row("p50", millis(a.p50), millis(b.p50), float64(a.p50)/float64(b.p50))
		row("p99", millis(a.p99), millis(b.p99), float64(a.p99)/float64(b.p99))
		row("memory (PSS)", mega(a.memory), mega(b.memory), float64(a.memory)/float64(b.memory))
		row("idle CPU", fmt.Sprintf("%.0f mCPU", a.idle*1000), fmt.Sprintf("%.0f mCPU", b.idle*1000), a.idle/b.idle)
	}
	return w.Flush()
}

// once measures one figure with new servers.
func (o *options) once(ctx context.Context, sys system, f figure) (measured, error) {
	b, err := newBench(sys, o.nodes, o.pods)
	if err != nil {
		return measured{}, err
	}
	defer b.close()
	return b.measure(ctx, f)
}

// better returns the better of each value of two measurements. a may be the zero value. less is
// true if a smaller rate is better.
func better(a, b measured, less bool) measured {
	if a == (measured{}) {
		return b
	}
	if less == (b.rate < a.rate) {
		a.rate = b.rate
	}
	a.cost = min(a.cost, b.cost)
	a.p50, a.p99 = min(a.p50, b.p50), min(a.p99, b.p99)
	a.memory = min(a.memory, b.memory)
	a.idle = min(a.idle, b.idle)
	return a
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func mega(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/(1<<20)) }

// micros formats a duration in microseconds.
func micros(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
}

func optional(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", v)
}

// ratio formats how many times better than Kubernetes a value is.
func ratio(f figure, v float64) string {
	if f.kubernetes == 0 || v == 0 {
		return "–"
	}
	if f.less {
		return fmt.Sprintf("%.1f×", f.kubernetes/v)
	}
	return fmt.Sprintf("%.1f×", v/f.kubernetes)
}
