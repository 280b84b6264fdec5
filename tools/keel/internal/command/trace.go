package command

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	tracev1 "keelson.dev/proto/keelson/trace/v1"

	"keelson.dev/tools/keel/internal/waterfall"
)

// traceable are the kinds that people ask for by a short name.
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

var clusterScoped = map[string]bool{"nodes": true, "namespaces": true, "certificatesigningrequests": true}

// trace draws what happened to an object.
func (e *env) trace() *cobra.Command {
	r := &remote{env: e}
	var namespace, output string
	cmd := &cobra.Command{
		Use:   "trace KIND/NAME | TRACE-ID",
		Short: "Draw what happened to an object, from the write to the running container",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("-o %s: want json", output)}
			}
			req := &tracev1.GetTraceRequest{Namespace: namespace}
			if kind, name, ok := strings.Cut(args[0], "/"); ok {
				k, known := traceable[strings.ToLower(kind)]
				if !known {
					return usageError{fmt.Errorf("no traces are kept by the name of %q; try deployment/NAME, service/NAME or pod/NAME", kind)}
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
			t, err := tracev1.NewTraceServiceClient(conn).GetTrace(cmd.Context(), req)
			if err != nil {
				return fmt.Errorf("trace of %s: %s", args[0], status.Convert(err).Message())
			}
			if output == "json" {
				enc := json.NewEncoder(e.out)
				enc.SetIndent("", "  ")
				return enc.Encode(t)
			}
			return waterfall.Draw(e.out, t, waterfall.Width())
		},
	}
	r.flags(cmd.Flags())
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the object")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}
