// Package cronjob starts Jobs at the times of a schedule.
//
// What to do is a pure function of the CronJob, its jobs and the time (plan.go). The
// controller must never start two jobs for the same scheduled time. The name of a job is
// derived from that time, so the server refuses a second one.
package cronjob

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

type reconciler struct {
	*cluster.Cluster

	CronJobs *client.Cache[*batchv1.CronJob]
	Jobs     *client.Cache[*batchv1.Job]

	cronJobs  client.Resource[*batchv1.CronJob]
	jobs      client.Resource[*batchv1.Job]
	ownWrites *controller.Writes
	jobWrites *controller.Writes
	now       func() time.Time
}

// New returns the CronJob controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, CronJobs: cluster.Of[*batchv1.CronJob](s), Jobs: cluster.Of[*batchv1.Job](s, cluster.ByController),
		cronJobs: client.For[*batchv1.CronJob](s.Client), jobs: client.For[*batchv1.Job](s.Client),
		now: time.Now,
	}
	r.ownWrites, r.jobWrites = controller.NewWrites(r.CronJobs), controller.NewWrites(r.Jobs)
	return controller.Controller{
		Name: "cronjob", Workers: 5, Reconcile: r.reconcile,
		Fresh: func(key controller.Key) error { return errors.Join(r.ownWrites.Fresh(key), r.jobWrites.Fresh(key)) },
		Sources: []controller.Source{
			controller.Objects(r.CronJobs),
			controller.From(r.Jobs, ofJob),
		},
	}
}

func ofJob(ev client.Event[*batchv1.Job]) []controller.Key {
	ref := metav1.GetControllerOfNoCopy(ev.Object)
	if ref == nil || ref.Kind != "CronJob" {
		return nil
	}
	return []controller.Key{{Namespace: ev.Object.Namespace, Name: ref.Name}}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	cj, ok := r.CronJobs.Get(key.Namespace, key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	jobs, err := r.complete(ctx, cj, r.Jobs.ByIndex(cluster.ByController, string(cj.UID)))
	if err != nil {
		return controller.Result{}, err
	}
	plan := Plan(cj, jobs, r.now())
	return controller.Result{RequeueAfter: plan.RequeueAfter}, r.carryOut(ctx, cj, plan)
}

// complete adds the jobs of status.active that the cache does not show but the server has.
// The CronJob and its jobs come by separate watches, so a CronJob can name a job before the
// cache shows it. If such a job counted as missing, ConcurrencyPolicy Forbid would start
// another one beside it.
func (r *reconciler) complete(ctx context.Context, cj *batchv1.CronJob, jobs []*batchv1.Job) ([]*batchv1.Job, error) {
	for _, ref := range cj.Status.Active {
		if slices.ContainsFunc(jobs, func(j *batchv1.Job) bool { return j.UID == ref.UID }) {
			continue
		}
		j, err := r.jobs.Get(ctx, cj.Namespace, ref.Name)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("get active job %s: %w", ref.Name, err)
		case j.UID == ref.UID && metav1.IsControlledBy(j, cj):
			jobs = append(slices.Clip(jobs), j)
		}
	}
	return jobs, nil
}

func (r *reconciler) carryOut(ctx context.Context, cj *batchv1.CronJob, plan Actions) error {
	for _, e := range plan.Events {
		if e.Warning {
			r.Events.Warning(ctx, cj, e.Reason, "%s", e.Message)
		} else {
			r.Events.Normal(ctx, cj, e.Reason, "%s", e.Message)
		}
	}
	for _, j := range plan.Delete {
		err := r.jobs.Delete(ctx, j.Namespace, j.Name, client.UID(j.UID), client.Propagation(metav1.DeletePropagationBackground))
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			r.Events.Warning(ctx, cj, "FailedDelete", "Deleted job: %v", err)
			return fmt.Errorf("delete job %s: %w", j.Name, err)
		default:
			r.Events.Normal(ctx, cj, "SuccessfulDelete", "Deleted job %v", j.Name)
		}
	}
	status := plan.Status
	if plan.Create != nil {
		j, err := r.create(ctx, cj, plan.Create)
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return nil
		case err != nil:
			r.Events.Warning(ctx, cj, "FailedCreate", "Error creating job: %v", err)
			return fmt.Errorf("create job %s: %w", plan.Create.Name, err)
		case finished(j) == nil && !slices.ContainsFunc(status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == j.UID }):
			status.Active = append(status.Active, reference(j))
		}
	}
	if reflect.DeepEqual(status, cj.Status) {
		return nil
	}
	next := cj.DeepCopy()
	next.Status = status
	got, err := r.cronJobs.UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("update status: %w", err)
	}
	r.ownWrites.Wrote(client.KeyOf(cj), got.ResourceVersion)
	return nil
}

// create creates a job, or returns the existing one if an earlier attempt created it.
func (r *reconciler) create(ctx context.Context, cj *batchv1.CronJob, j *batchv1.Job) (*batchv1.Job, error) {
	got, err := r.jobs.Create(ctx, j)
	if err == nil {
		r.jobWrites.Wrote(client.KeyOf(cj), got.ResourceVersion)
		r.Events.Normal(ctx, cj, "SuccessfulCreate", "Created job %v", got.Name)
		return got, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	got, getErr := r.jobs.Get(ctx, j.Namespace, j.Name)
	if getErr != nil {
		return nil, getErr
	}
	if ref := metav1.GetControllerOf(got); ref == nil || ref.UID != cj.UID {
		return nil, fmt.Errorf("a job of this name is not controlled by the CronJob: %w", err)
	}
	return got, nil
}
