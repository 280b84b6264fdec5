package job_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/job"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func work(name string, parallelism, completions int32) *batchv1.Job {
	labels := map[string]string{"job": name}
	limit := int32(3)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: batchv1.JobSpec{
			Parallelism: &parallelism, Completions: &completions, BackoffLimit: &limit,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}},
			},
		},
	}
}

// finish ends each pod that runs with a phase.
func finish(w *World, phase corev1.PodPhase) {
	pods := client.For[*corev1.Pod](w.Client)
	w.Go(func(ctx context.Context) error {
		for ev, err := range pods.Watch(ctx, client.WatchOptions{SendInitialEvents: true}) {
			if err != nil {
				return err
			}
			if ev.Type == client.Bookmark || ev.Type == client.Deleted || ev.Object.Status.Phase != corev1.PodRunning {
				continue
			}
			p := ev.Object
			p.Status.Phase, p.Status.Conditions = phase, nil
			_, _ = pods.UpdateStatus(ctx, p)
		}
		return nil
	})
}

func done(w *World, name string, t batchv1.JobConditionType) func() bool {
	return func() bool {
		for _, c := range Get[*batchv1.Job](w, "default", name).Status.Conditions {
			if c.Type == t && c.Status == corev1.ConditionTrue {
				return true
			}
		}
		return false
	}
}

func TestRunsToCompletion(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	finish(w, corev1.PodSucceeded)
	w.Run(job.New(w.Cluster))
	Create(w, work("a", 3, 10))
	indexed := work("b", 5, 12)
	mode := batchv1.IndexedCompletion
	indexed.Spec.CompletionMode = &mode
	Create(w, indexed)
	w.Eventually("a completes", done(w, "a", batchv1.JobComplete))
	w.Eventually("b completes", done(w, "b", batchv1.JobComplete))
	a, b := Get[*batchv1.Job](w, "default", "a"), Get[*batchv1.Job](w, "default", "b")
	if a.Status.Succeeded != 10 || a.Status.Failed != 0 || a.Status.CompletionTime == nil || a.Status.Active != 0 {
		t.Errorf("a: %+v", a.Status)
	}
	if b.Status.Succeeded != 12 || b.Status.CompletedIndexes != "0-11" {
		t.Errorf("b: %+v", b.Status)
	}
	pods := List[*corev1.Pod](w, "default")
	if len(pods) != 22 {
		t.Errorf("%d pods", len(pods))
	}
	for _, p := range pods {
		if len(p.Finalizers) > 0 {
			t.Errorf("%s is held", p.Name)
		}
	}
}

func TestFails(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	finish(w, corev1.PodFailed)
	j := work("a", 5, 5)
	w.Run(job.New(w.Cluster))
	Create(w, j)
	w.Eventually("it fails", done(w, "a", batchv1.JobFailed))
	got := Get[*batchv1.Job](w, "default", "a")
	if got.Status.Failed != 5 || got.Status.Succeeded != 0 || got.Status.CompletionTime != nil {
		t.Errorf("status %+v", got.Status)
	}
}

// A deleted job releases its pods, even if no controller saw the deletion.
func TestDeletedJobLetsGo(t *testing.T) {
	w := Start(t)
	stop := w.Run(job.New(w.Cluster))
	Create(w, work("a", 2, 2))
	held := func(n int) func() bool {
		return func() bool {
			c := 0
			for _, p := range List[*corev1.Pod](w, "default") {
				c += len(p.Finalizers)
			}
			return c == n
		}
	}
	w.Eventually("two pods", held(2))
	stop()
	Delete[*batchv1.Job](w, "default", "a")
	w.Run(job.New(w.Cluster))
	w.Eventually("they are let go", held(0))
}

func TestSuspends(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	w.Run(job.New(w.Cluster))
	Create(w, work("a", 3, 3))
	running := func(n int32) func() bool {
		return func() bool {
			s := Get[*batchv1.Job](w, "default", "a").Status
			return s.Active == n && s.Ready != nil && *s.Ready == n && *s.Terminating == 0
		}
	}
	w.Eventually("three run", running(3))
	yes, no := true, false
	Update(w, "default", "a", func(j *batchv1.Job) { j.Spec.Suspend = &yes })
	w.Eventually("none runs", running(0))
	w.Eventually("it is reported", done(w, "a", batchv1.JobSuspended))
	Update(w, "default", "a", func(j *batchv1.Job) { j.Spec.Suspend = &no })
	w.Eventually("three run again", running(3))
	if s := Get[*batchv1.Job](w, "default", "a").Status; s.Failed != 0 {
		t.Errorf("%d pods count as failed", s.Failed)
	}
}
