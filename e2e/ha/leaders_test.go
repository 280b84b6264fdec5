package ha_test

import (
	"context"
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

	"keelson.dev/proto/client"
)

var rounds = flag.Int("rounds", 4, "how many leaders of each service are killed, and how many stopped")

// leading is the process of a service that holds its Lease.
func (c *controlPlane) leading(api *client.Client, service string) (process, error) {
	lease, err := client.For[*coordinationv1.Lease](api).Get(context.Background(), metav1.NamespaceSystem, service)
	if err != nil {
		return process{}, err
	}
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return process{}, fmt.Errorf("nobody leads %s", service)
	}
	list, err := c.processes()
	if err != nil {
		return process{}, err
	}
	for _, p := range list {
		if !strings.HasPrefix(p.Name, service+"-") {
			continue
		}
		log, err := os.ReadFile(filepath.Join(c.home, "log", p.Name+".log"))
		if err != nil {
			return process{}, err
		}
		if strings.Contains(string(log), "identity="+*lease.Spec.HolderIdentity+"\n") {
			return p, nil
		}
	}
	return process{}, fmt.Errorf("no process says that it is %s", *lease.Spec.HolderIdentity)
}

// TestLeadersDie ends the leading scheduler and controller-manager again and again,
// by SIGKILL and by SIGTERM, and measures when the next does its work.
func TestLeadersDie(t *testing.T) {
	c := start(t)
	api := c.client()
	pods, sets := client.For[*corev1.Pod](api), client.For[*appsv1.ReplicaSet](api)
	deployments := client.For[*appsv1.Deployment](api)
	ctx := context.Background()
	const ns = "default"
	spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "any"}}}

	bound := func(name string) error {
		_, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: spec})
		if err != nil {
			return err
		}
		return until(30*time.Second, func() (bool, error) {
			p, err := pods.Get(ctx, ns, name)
			return err == nil && p.Spec.NodeName != "", err
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
		return until(30*time.Second, func() (bool, error) {
			list, _, err := sets.List(ctx, client.ListOptions{Namespace: ns, LabelSelector: "app=" + name})
			return len(list) > 0, err
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
			var took []time.Duration
			for i := range *rounds {
				c.settled(api, row.service)
				leader, err := c.leading(api, row.service)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				if err := syscall.Kill(leader.PID, row.signal); err != nil {
					t.Fatal(err)
				}
				name := fmt.Sprintf("%s-%d-%d", row.service, row.signal, i)
				if err := row.work(name); err != nil {
					t.Fatalf("round %d, %s had ended: %v", i, leader.Name, err)
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("%d rounds: %s in the median, %s at worst", len(took), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
			if worst := took[len(took)-1]; worst > row.within {
				t.Errorf("the next %s worked after %s, want %s at most", row.service, worst, row.within)
			}
		})
	}
}

// settled waits until all candidates of a service run and one leads.
func (c *controlPlane) settled(api *client.Client, service string) {
	c.t.Helper()
	err := until(time.Minute, func() (bool, error) {
		list, err := c.processes()
		if err != nil {
			return false, err
		}
		for _, p := range list {
			if strings.HasPrefix(p.Name, service) && !p.Healthy {
				return false, fmt.Errorf("%s: %s", p.Name, p.Reason)
			}
		}
		_, err = c.leading(api, service)
		return err == nil, err
	})
	if err != nil {
		c.t.Fatalf("%s has not settled: %v", service, err)
	}
}

// until polls a condition; the last error is what is returned in the end.
func until(within time.Duration, condition func() (bool, error)) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := condition()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %w", within, err)
		}
		<-tick.C
	}
}
