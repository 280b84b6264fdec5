package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tracev1 "keelson.dev/proto/keelson/trace/v1"

	"keelson.dev/tools/keel/internal/waterfall"
)

// traceable maps the kinds and short names that trace accepts to resources.
var traceable = map[string]struct{ group, resource string }{
	"pod": {"", "pods"}, "po": {"", "pods"}, "pods": {"", "pods"},
	"service": {"", "services"}, "svc": {"", "services"}, "services": {"", "services"},
	"deployment": {"apps", "deployments"}, "deploy": {"apps", "deployments"}, "deployments": {"apps", "deployments"},
	"replicaset": {"apps", "replicasets"}, "rs": {"apps", "replicasets"}, "replicasets": {"apps", "replicasets"},
	"job": {"batch", "jobs"}, "jobs": {"batch", "jobs"},
	"persistentvolumeclaim": {"", "persistentvolumeclaims"}, "pvc": {"", "persistentvolumeclaims"},
	"configmap": {"", "configmaps"}, "cm": {"", "configmaps"},
	"node": {"", "nodes"}, "no": {"", "nodes"}, "namespace": {"", "namespaces"}, "ns": {"", "namespaces"},
	"certificatesigningrequest": {"certificates.k8s.io", "certificatesigningrequests"}, "csr": {"certificates.k8s.io", "certificatesigningrequests"},
}

// clusterScoped contains the resources that have no namespace.
var clusterScoped = map[string]bool{"nodes": true, "namespaces": true, "certificatesigningrequests": true}

// trace draws what happened to an object.
func (e *env) trace() *cobra.Command {
	r := &remote{env: e}
	var namespace, output string
	var wait time.Duration
	var last int
	cmd := &cobra.Command{
		Use:   "trace KIND/NAME | TRACE-ID",
		Short: "Draw what happened to an object, from the write to the running container",
		Long: `Draw what happened to an object, from the write to the running container.

Services report their spans with a delay. keel waits until no more of them arrive. If
parts of the trace are still missing then, it draws what there is, reports what is
missing, and exits with 3.`,
		Example: `  keel trace deployment/shop -n prod
  keel trace pod/shop-0 --last 3
  keel trace 4bf92f3577b34da6a3ce929d0e0e4736 -o json`,
		Args:              exactArgs(1),
		ValidArgsFunction: traceKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			if last < 1 || last > 1000 || last > 1 && !strings.Contains(args[0], "/") {
				return usageError{fmt.Errorf("--last %d: expected 1 to 1000, and KIND/NAME", last)}
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			req := &tracev1.GetTraceRequest{Namespace: namespace}
			if kind, name, ok := strings.Cut(args[0], "/"); ok {
				k, known := traceable[strings.ToLower(kind)]
				if !known {
					return usageError{fmt.Errorf("cannot find traces by the kind %q; try deployment/NAME, service/NAME or pod/NAME", kind)}
				}
				req.Group, req.Resource, req.Name = k.group, k.resource, name
				if clusterScoped[k.resource] {
					req.Namespace = ""
				}
			} else {
				req.TraceId = args[0]
			}
			conn, _, err := r.reach()
			if err != nil {
				return err
			}
			defer conn.Close()
			service := tracev1.NewTraceServiceClient(conn)
			get := func(ctx context.Context) (*tracev1.GetTraceResponse, error) { return service.GetTrace(ctx, req) }
			t, missing, err := settle(cmd.Context(), wait, get)
			if err != nil {
				return fmt.Errorf("trace of %s: %s", args[0], waterfall.Plain(status.Convert(err).Message()))
			}
			// Draw the traces of earlier writes first. They were complete long ago, or their
			// spans are no longer in memory.
			earlier, err := earlierTraces(last-1, func(n int32) (*tracev1.GetTraceResponse, error) {
				return service.GetTrace(cmd.Context(), &tracev1.GetTraceRequest{
					Group: req.Group, Resource: req.Resource, Namespace: req.Namespace, Name: req.Name, Earlier: n,
				})
			})
			if err != nil {
				return fmt.Errorf("earlier traces of %s: %s", args[0], waterfall.Plain(status.Convert(err).Message()))
			}
			for _, t := range earlier {
				if err := e.show(t, output); err != nil {
					return err
				}
			}
			err = e.show(t, output)
			if err == nil && missing != "" {
				fmt.Fprintf(e.err, "keel: the trace is incomplete: %s\n", missing)
				return exitCode(incomplete)
			}
			return err
		},
	}
	r.flags(cmd.Flags())
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "`namespace` of the object")
	cmd.Flags().IntVar(&last, "last", 1, "draw the traces of the object's last `N` writes that are in memory")
	cmd.Flags().DurationVar(&wait, "wait", 5*time.Second, "how long to wait until the trace is complete")
	outputFlag(cmd, &output)
	return cmd
}

// show draws a trace, or writes it as JSON.
func (e *env) show(t *tracev1.GetTraceResponse, output string) error {
	if output == "json" {
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		return enc.Encode(t)
	}
	return waterfall.Draw(e.out, t, waterfall.Width())
}

// earlierTraces returns the traces of up to n earlier writes, the oldest first. It returns
// fewer if no more are in memory.
func earlierTraces(n int, get func(earlier int32) (*tracev1.GetTraceResponse, error)) ([]*tracev1.GetTraceResponse, error) {
	var out []*tracev1.GetTraceResponse
	for i := range n {
		t, err := get(int32(i + 1)) //nolint:gosec // at most 1000
		if status.Code(err) == codes.NotFound {
			break
		}
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	slices.Reverse(out)
	return out, nil
}

// incomplete is the exit code if a trace was drawn with parts missing.
const incomplete = 3

const (
	// settleEvery is the interval at which the trace is requested until it is complete.
	settleEvery = 200 * time.Millisecond
	// quiet is the time without new spans after which a trace counts as complete. Services
	// report every half second.
	quiet = 1200 * time.Millisecond
)

// settle requests a trace until no more spans arrive and the parent of every span is there, or
// until wait has passed. missing describes what is missing then.
func settle(ctx context.Context, wait time.Duration, get func(context.Context) (*tracev1.GetTraceResponse, error)) (t *tracev1.GetTraceResponse, missing string, err error) {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	last, spans, end := time.Now(), -1, int64(0)
	for {
		t, err = get(ctx)
		if err != nil && status.Code(err) != codes.NotFound {
			return nil, "", err
		}
		now, latest := len(t.GetSpans()), int64(0)
		for _, s := range t.GetSpans() {
			latest = max(latest, s.EndUnixNano)
		}
		if now != spans || latest != end {
			last, spans, end = time.Now(), now, latest
		}
		still := time.Since(last) >= quiet || end > 0 && time.Since(time.Unix(0, end)) > wait
		lost := waterfall.Missing(t)
		switch {
		case err != nil:
		case t.GetDropped():
			return t, "its older spans are no longer in memory", nil
		case still && lost == 0:
			return t, "", nil
		case !still:
			missing = "spans are still arriving"
		default:
			missing = fmt.Sprintf("%d spans name a parent that has not arrived", lost)
		}
		select {
		case <-ctx.Done():
			return nil, "", errors.Join(err, ctx.Err())
		case <-deadline.C:
			return t, missing, err
		case <-tick.C:
		}
	}
}
