// Command bench measures a Keelson apiserver, and a whole control plane with
// simulated nodes, from outside, and prints each figure beside Kubernetes 1.37's
// on a machine with two cores (see README.md for where that column comes from).
//
//	bench --bin DIR [--only NAME,…]
//
// Everything runs on this machine, the clients included. Figures vary between
// machines: compare ratios measured in one run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// figure is one line of the table.
type figure struct {
	name string
	// kubernetes is the reference; 0 where there is none.
	kubernetes float64
	// floor and target are Keelson's own; less says that smaller is better.
	floor, target float64
	unit          string
	less          bool
	measure       func(ctx context.Context, b *bench) (float64, string, error)
}

var figures = []figure{
	{"start", 3050, 1000, 700, "ms", true, measureStart},
	{"rest-create", 586, 1200, 3000, "/s", false, restCreate},
	{"rest-get", 2021, 4000, 8000, "/s", false, restGet},
	{"rest-patch", 486, 1000, 3000, "/s", false, restPatch},
	{"rest-list-p50", 348, 250, 150, "ms", true, restList},
	{"rest-lease-renew", 1049, 0, 5000, "/s", false, restLease},
	{"grpc-create", 0, 0, 9000, "/s", false, grpcCreate},
	{"grpc-commit", 0, 0, 15000, "/s", false, grpcCommit},
	{"grpc-get", 0, 0, 0, "/s", false, grpcGet},
	{"rest-watch-fanout", 30800, 0, 60000, "events/s", false, restWatch},
	{"grpc-watch-fanout", 0, 0, 100000, "events/s", false, grpcWatch},
	{"schedule-rest", 147, 500, 1500, "pods/s", false, scheduleREST},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	bin := flag.String("bin", "bin", "directory of the programs")
	only := flag.String("only", "", "names of figures, comma-separated (default: all)")
	flag.Parse()
	if err := run(ctx, *bin, *only); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, only string) error {
	b, err := newBench(bin)
	if err != nil {
		return err
	}
	defer b.close()
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "FIGURE\tKEELSON\tKUBERNETES 1.37\tRATIO\tFLOOR\tTARGET\t\t")
	for _, f := range figures {
		if only != "" && !slices.Contains(strings.Split(only, ","), f.name) {
			continue
		}
		began := time.Now()
		value, note, err := f.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		fmt.Fprintf(os.Stderr, "%s: %.0f %s (%s, took %.1fs)\n", f.name, value, f.unit, note, time.Since(began).Seconds())
		fmt.Fprintf(w, "%s\t%.0f %s\t%s\t%s\t%s\t%s\t%s\t\n", f.name, value, f.unit, optional(f.kubernetes), ratio(f, value), optional(f.floor), optional(f.target), note)
	}
	return w.Flush()
}

func optional(v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf("%.0f", v)
}

// ratio is how many times better than Kubernetes.
func ratio(f figure, v float64) string {
	if f.kubernetes == 0 || v == 0 {
		return "–"
	}
	if f.less {
		return fmt.Sprintf("%.1f×", f.kubernetes/v)
	}
	return fmt.Sprintf("%.1f×", v/f.kubernetes)
}
