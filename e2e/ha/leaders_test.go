package ha_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/e2e/internal/cluster"
	"keelson.dev/e2e/internal/pace"
	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

var rounds = flag.Int("rounds", 4, "how many leaders of each service are killed, and how many stopped")

// leading is the process of a service that holds its Lease.
func leading(ctx context.Context, c *cluster.Cluster, api *client.Client, service string) (leader cluster.Process, err error) {
	lease, err := client.For[*coordinationv1.Lease](api).Get(ctx, metav1.NamespaceSystem, service)
	if err != nil {
		return leader, err
	}
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return leader, fmt.Errorf("no process leads %s", service)
	}
	list, err := c.Processes(ctx)
	if err != nil {
		return leader, err
	}
	for _, p := range list {
		if !strings.HasPrefix(p.Name, service+"-") {
			continue
		}
		log, err := os.ReadFile(filepath.Join(c.Home, "log", p.Name+".log"))
		if err != nil {
			return leader, err
		}
		if strings.Contains(string(log), "identity="+*lease.Spec.HolderIdentity+"\n") {
			return p, nil
		}
	}
	return leader, fmt.Errorf("no process logs that it is %s", *lease.Spec.HolderIdentity)
}

// TestLeadersDie ends the leading scheduler and controller-manager repeatedly, by SIGKILL
// and by SIGTERM, and measures how long it takes until the next one does its work.
func TestLeadersDie(t *testing.T) {
	c := start(t)
	api := c.Client(t)
	pods, sets := client.For[*corev1.Pod](api), client.For[*appsv1.ReplicaSet](api)
	deployments := client.For[*appsv1.Deployment](api)
	ctx := t.Context()
	const ns = "default"
	spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "any"}}}

	bound := func(name string) error {
		_, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec})
		if err != nil {
			return err
		}
		return wait.Until(ctx, 30*time.Second, func(ctx context.Context) error {
			p, err := pods.Get(ctx, ns, name)
			if err == nil && p.Spec.NodeName == "" {
				err = errors.New("the pod is not bound")
			}
			return err
		})
	}
	acted := func(name string) error {
		labels := map[string]string{"app": name}
		_, err := deployments.Create(ctx, &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: appsv1.DeploymentSpec{
				Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
			},
		})
		if err != nil {
			return err
		}
		return wait.Until(ctx, 30*time.Second, func(ctx context.Context) error {
			list, _, err := sets.List(ctx, client.ListOptions{Namespace: ns, LabelSelector: "app=" + name})
			if err == nil && len(list) == 0 {
				err = errors.New("the Deployment has no ReplicaSet")
			}
			return err
		})
	}
	for _, row := range []struct {
		service string
		work    func(name string) error
		signal  syscall.Signal
		within  time.Duration
	}{
		{"scheduler", bound, syscall.SIGKILL, 2500 * time.Millisecond},
		{"scheduler", bound, syscall.SIGTERM, 500 * time.Millisecond},
		{"controller-manager", acted, syscall.SIGKILL, 2500 * time.Millisecond},
		{"controller-manager", acted, syscall.SIGTERM, 500 * time.Millisecond},
	} {
		t.Run(row.service+"/"+row.signal.String(), func(t *testing.T) {
			var took []time.Duration // that the machine gave
			clock := pace.Start(t)
			for i := range *rounds {
				settled(t, c, api, row.service)
				leader, err := leading(ctx, c, api, row.service)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				c.Kill(t, leader, row.signal)
				name := fmt.Sprintf("%s-%d-%d", row.service, row.signal, i)
				if err := row.work(name); err != nil {
					t.Fatalf("round %d, after %s had ended: %v", i, leader.Name, err)
				}
				took = append(took, clock.Since(began))
			}
			slices.Sort(took)
			t.Logf("%d rounds: %s in the median, %s at worst", len(took), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
			if worst := took[len(took)-1]; worst > row.within {
				t.Errorf("the next %s worked after %s, want %s at most", row.service, worst, row.within)
			}
		})
	}
}

// settled waits until all candidates of a service are healthy and one leads.
func settled(t *testing.T, c *cluster.Cluster, api *client.Client, service string) {
	t.Helper()
	wait.For(t, time.Minute, service+" has a leader and a standby", func(ctx context.Context) error {
		if err := c.Healthy(ctx, service); err != nil {
			return err
		}
		_, err := leading(ctx, c, api, service)
		return err
	})
}
