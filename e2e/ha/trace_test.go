package ha_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	tracev1 "keelson.dev/proto/keelson/trace/v1"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/wait"
)

// tracesAgree checks that each apiserver returns the whole trace of a pod's creation, although its
// spans were sent to several of them.
func tracesAgree(t *testing.T, c *cluster.Cluster, namespace, pod string) {
	t.Helper()
	request := &tracev1.GetTraceRequest{Resource: "pods", Namespace: namespace, Name: pod}
	for _, p := range c.Apiservers(t) {
		traces := tracev1.NewTraceServiceClient(c.Dial(t, []string{p.GRPC}).Conn())
		wait.For(t, time.Minute, p.Name+" returns what the apiserver and the node did", func(ctx context.Context) error {
			got, err := traces.GetTrace(ctx, request)
			if err != nil {
				return err
			}
			created, started := 0, 0
			for _, s := range got.GetSpans() {
				switch {
				case s.GetService() == "apiserver" && s.GetName() == "POST pods":
					created++
				case s.GetService() == "node" && strings.HasPrefix(s.GetName(), "start container "):
					started++
				}
			}
			if created != 1 || started != 1 || got.GetDropped() {
				return fmt.Errorf("%d spans of the create and %d of the container's start, dropped %v: %v", created, started, got.GetDropped(), got.GetSpans())
			}
			return nil
		})
	}
}
