package command

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	tracev1 "keelson.dev/proto/keelson/trace/v1"
)

// tracedServices are the services whose spans the trace of a workload has. Simulated nodes record
// none: their writes are spans of the apiserver.
var tracedServices = []string{"apiserver", "controller-manager", "scheduler"}

// chartTest is what `helm test` runs.
func (e *env) chartTest() *cobra.Command {
	var identity, image string
	var apiservers []string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Create a workload in the control plane, wait until it runs, and read its trace",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			conn, err := dialAt(identity, apiservers)
			if err != nil {
				return err
			}
			defer conn.Close()
			var traces []tracev1.TraceServiceClient
			for _, a := range apiservers {
				one, err := dialAt(identity, []string{a})
				if err != nil {
					return err
				}
				defer one.Close()
				traces = append(traces, tracev1.NewTraceServiceClient(one))
			}
			name := "keelson-test-" + random(6)
			c := client.New(conn, "keel")
			deployments := client.For[*appsv1.Deployment](c)
			began := time.Now()
			if _, err := deployments.Create(ctx, testWorkload(name, image)); err != nil {
				return err
			}
			defer func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), remoteTimeout)
				defer cancel()
				if err := deployments.Delete(ctx, metav1.NamespaceDefault, name); err != nil {
					fmt.Fprintf(e.err, "keel: %v\n", err)
				}
			}()
			err = repeat(ctx, func() error {
				d, err := deployments.Get(ctx, metav1.NamespaceDefault, name)
				if err == nil && d.Status.ReadyReplicas == 0 {
					err = fmt.Errorf("deployment %s has no ready pod", name)
				}
				return err
			})
			if err != nil {
				return err
			}
			e.say("deployment %s was ready after %s", name, time.Since(began).Round(time.Millisecond))
			return e.testTrace(ctx, traces, name)
		},
	}
	f := cmd.Flags()
	f.StringVar(&identity, "identity", "/pki", "`directory` with the administrator's certificate")
	f.StringSliceVar(&apiservers, "apiserver", nil, "`host:port` of each apiserver's gRPC API")
	f.StringVar(&image, "image", "keelson.dev/pause:1", "`image` of the workload")
	f.DurationVar(&wait, "wait", 2*time.Minute, "maximum duration")
	required(cmd, "apiserver")
	return cmd
}

func testWorkload(name, image string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent}}},
			},
		},
	}
}

// testTrace reads the workload's trace from each apiserver until it has the spans of all services.
func (e *env) testTrace(ctx context.Context, traces []tracev1.TraceServiceClient, name string) error {
	return repeat(ctx, func() error {
		var t *tracev1.GetTraceResponse
		services := map[string]bool{}
		for _, apiserver := range traces {
			var err error
			t, err = apiserver.GetTrace(ctx, &tracev1.GetTraceRequest{Group: "apps", Resource: "deployments", Namespace: metav1.NamespaceDefault, Name: name})
			if err != nil {
				return fmt.Errorf("trace of deployment %s: %w", name, said(err))
			}
			clear(services)
			for _, s := range t.GetSpans() {
				services[s.Service] = true
			}
			for _, service := range tracedServices {
				if !services[service] {
					return errors.New("the trace has no span of " + service)
				}
			}
		}
		e.say("trace %s has the write and what it caused: %d spans of %s", t.GetTraceId(), len(t.GetSpans()), strings.Join(slices.Sorted(maps.Keys(services)), ", "))
		return nil
	})
}
