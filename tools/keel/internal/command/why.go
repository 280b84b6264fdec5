package command

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/proto/client"
	tracev1 "keelson.dev/proto/keelson/trace/v1"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/waterfall"
	"keelson.dev/tools/keel/internal/why"
)

// unhealthy is the exit code of `keel why` if the object has a problem.
const unhealthy = 3

// why returns the command that explains why an object is not ready.
func (e *env) why() *cobra.Command {
	r := &remote{env: e}
	var namespace, output string
	cmd := &cobra.Command{
		Use:   "why KIND/NAME",
		Short: "Explain why an object is not ready, and what to do",
		Long: `Explain why an object is not ready: the cause, what shows it, and what to do next.

The answer about a workload includes the pod that causes its problem. KIND is pod,
deployment, replicaset, statefulset, daemonset, job, cronjob, hpa, service, pvc or node. The
exit code is 0 if nothing is wrong, and 3 otherwise. The codes of the causes, also in the
output of -o json, are stable.`,
		Example: `  keel why deployment/shop -n prod
  keel why pvc/data-db-0
  keel why node/node-1 -o json`,
		Args:              exactArgs(1),
		ValidArgsFunction: whyKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			ref, err := whyRef(args[0], namespace)
			if err != nil {
				return err
			}
			conn, c, err := r.reach()
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*remoteTimeout)
			defer cancel()
			w, err := why.Load(ctx, client.New(conn, "keel"), ref)
			if err != nil {
				return err
			}
			a, err := w.Explain(ref)
			if err != nil {
				return err
			}
			if !a.Healthy {
				if logs, err := r.logs(c); err == nil {
					addLogs(ctx, w, a.Culprit().Object, logs)
					if a, err = w.Explain(ref); err != nil {
						return err
					}
				}
				addSpans(ctx, conn, a)
			}
			if err := e.showAnswer(a, output, w.Now); err != nil {
				return err
			}
			if !a.Healthy && a.Code != why.Progressing {
				return exitCode(unhealthy)
			}
			return nil
		},
	}
	r.flags(cmd.Flags())
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "`namespace` of the object")
	outputFlag(cmd, &output)
	return cmd
}

// whyRef parses KIND/NAME.
func whyRef(arg, namespace string) (why.Ref, error) {
	kind, name, ok := strings.Cut(arg, "/")
	known := why.Kinds[strings.ToLower(kind)]
	if !ok || name == "" || known == "" {
		return why.Ref{}, usageError{fmt.Errorf("%q: want KIND/NAME, with one of these kinds: %s", arg, strings.Join(whyNames(), ", "))}
	}
	ref := why.Ref{Kind: known, Namespace: namespace, Name: name}
	if known == "Node" {
		ref.Namespace = ""
	}
	return ref, nil
}

// whyNames returns the singular names of the kinds, sorted.
func whyNames() []string {
	return slices.Sorted(maps.Keys(maps.Collect(func(yield func(string, bool) bool) {
		for _, kind := range why.Kinds {
			if !yield(strings.ToLower(kind), true) {
				return
			}
		}
	})))
}

func whyKinds(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	if len(args) > 0 || strings.Contains(begun, "/") {
		return nil, directive
	}
	var out []string
	for _, n := range whyNames() {
		out = append(out, n+"/")
	}
	return out, directive
}

func (e *env) showAnswer(a *why.Answer, output string, now time.Time) error {
	if output == "json" {
		enc := json.NewEncoder(e.out)
		enc.SetIndent("", "  ")
		return enc.Encode(a)
	}
	return why.Draw(e.out, a, now, waterfall.Plain)
}

// whyLines and whyBytes bound how much of the end of a container's log is read.
const (
	whyLines = 5
	whyBytes = 4096
)

// logReader reads the last lines of a container's log, or of its previous instance's.
type logReader func(ctx context.Context, ref why.Ref, container string, previous bool) (string, error)

// logs returns a reader of logs. It uses HTTPS, as kubectl does, because gRPC has no call for logs.
func (r *remote) logs(c *cluster.Cluster) (logReader, error) {
	path := r.kubeconfigPath()
	if c != nil {
		path = c.Kubeconfig()
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	config.Timeout = remoteTimeout
	web, err := restclient.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, ref why.Ref, container string, previous bool) (string, error) {
		defer web.CloseIdleConnections()
		at := fmt.Sprintf("%s/api/v1/namespaces/%s/pods/%s/log?container=%s&previous=%v&tailLines=%d&limitBytes=%d", config.Host,
			url.PathEscape(ref.Namespace), url.PathEscape(ref.Name), url.QueryEscape(container), previous, whyLines, whyBytes)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
		if err != nil {
			return "", err
		}
		resp, err := web.Do(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		data, err := io.ReadAll(io.LimitReader(resp.Body, whyBytes))
		if err != nil || resp.StatusCode != http.StatusOK {
			return "", cmp.Or(err, fmt.Errorf("status %s", resp.Status))
		}
		return string(data), nil
	}, nil
}

// addLogs adds to w the last lines of the logs that may show why a pod is not ready. Logs that cannot
// be read are skipped, as the explanation does not depend on them.
func addLogs(ctx context.Context, w *why.World, ref why.Ref, read logReader) {
	if ref.Kind != "Pod" {
		return
	}
	for container, previous := range w.Containers(ref) {
		if text, err := read(ctx, ref, container, previous); err == nil {
			w.AddLog(ref, container, text)
		}
	}
}

// maxSpans bounds how many failed spans of a trace are added to the evidence.
const maxSpans = 3

// lostRace reports whether text is the error of a write that conflicted with another one.
func lostRace(text string) bool {
	return strings.Contains(text, "the object has been modified") || strings.Contains(text, "already exists")
}

// addSpans adds the failed spans in the trace of the culprit to its evidence.
func addSpans(ctx context.Context, conn *grpc.ClientConn, a *why.Answer) {
	at := a.Culprit()
	k, ok := traceable[strings.ToLower(at.Object.Kind)]
	if !ok {
		return
	}
	t, err := tracev1.NewTraceServiceClient(conn).GetTrace(ctx, &tracev1.GetTraceRequest{
		Group: k.group, Resource: k.resource, Namespace: at.Object.Namespace, Name: at.Object.Name,
	})
	if err != nil {
		return // the trace has been forgotten, or the user may not read it
	}
	seen := map[string]bool{}
	for _, s := range slices.Backward(t.GetSpans()) {
		// A conflicting write is retried at once, so it is not a cause.
		if s.GetError() == "" || seen[s.GetError()] || len(seen) == maxSpans || lostRace(s.GetError()) {
			continue
		}
		seen[s.GetError()] = true
		at.Evidence = append(at.Evidence, why.Evidence{
			Source: "span", Object: at.Object, Text: s.GetService() + ": " + s.GetName() + ": " + s.GetError(),
			Time: metav1.Unix(0, s.GetEndUnixNano()),
		})
	}
}
