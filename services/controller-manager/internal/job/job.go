// Package job runs pods to completion.
//
// Each pod carries the finalizer batch.kubernetes.io/job-tracking until its end is
// recorded in the job's status: first its uid (or index) is written there, then the
// finalizer is removed, then the uid is replaced by a count (KEP-2307). The controller
// must never count a pod twice or lose one, even if it stops between two of these
// writes.
package job

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/owner"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/podtemplate"
	"keelson.dev/services/internal/controller"
)

// builtIn is the value of spec.managedBy that stands for this controller.
const builtIn = batchv1.JobControllerName

type reconciler struct {
	*cluster.Cluster

	Jobs *client.Cache[*batchv1.Job]

	jobs      client.Resource[*batchv1.Job]
	pods      *owner.Claimer[*batchv1.Job, *corev1.Pod]
	jobWrites *controller.Writes
	now       func() time.Time

	mu sync.Mutex
	// checked holds, by key, the uids of the jobs whose pods were compared with the server
	// before this process first counted one.
	checked map[controller.Key]types.UID
}

// New returns the Job controller.
func New(s *cluster.Cluster) controller.Controller {
	r := &reconciler{
		Cluster: s, Jobs: cluster.Of[*batchv1.Job](s), jobs: client.For[*batchv1.Job](s.Client),
		pods: owner.NewClaimer[*batchv1.Job, *corev1.Pod](s, func(j *batchv1.Job) *metav1.LabelSelector { return j.Spec.Selector }),
		now:  time.Now, checked: map[controller.Key]types.UID{},
	}
	r.jobWrites = controller.NewWrites(r.Jobs)
	r.pods.Adoptable = func(j *batchv1.Job, p *corev1.Pod) bool {
		return podstate.Active(p) && finishedCondition(&j.Status) == nil
	}
	r.pods.Finalizers = []string{batchv1.JobTrackingFinalizer}
	r.pods.Cache.AddIndex(byJob, jobOf)
	return controller.Controller{
		Name: "job", Workers: 5, Reconcile: r.reconcile,
		Fresh: func(key controller.Key) error { return errors.Join(r.pods.Writes.Fresh(key), r.jobWrites.Fresh(key)) },
		Sources: []controller.Source{
			controller.Objects(r.Jobs),
			r.pods.Source(),
		},
	}
}

// byJob finds pods that a job tracks by the "namespace/name" of the job.
const byJob = "job"

func jobOf(p *corev1.Pod) []string {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "Job" || !tracked(p) {
		return nil
	}
	return []string{p.Namespace + "/" + ref.Name}
}

func (r *reconciler) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	j, ok := r.Jobs.Get(key.Namespace, key.Name)
	if err := r.releaseOrphans(ctx, key, j); err != nil {
		return controller.Result{}, err
	}
	if !ok {
		r.mu.Lock()
		delete(r.checked, key)
		r.mu.Unlock()
	}
	if !ok || j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != builtIn {
		return controller.Result{}, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector)
	if err != nil || selector.Empty() {
		return controller.Result{}, nil // validation keeps such an object out.
	}
	pods, err := r.pods.Claim(ctx, j, selector)
	if err != nil {
		return controller.Result{}, err
	}
	plan := Plan(j, pods, r.now())
	if u := uncountedOf(&j.Status); len(plan.Release)+len(u.Succeeded)+len(u.Failed) > 0 {
		if err := r.current(ctx, j, selector, pods); err != nil {
			return controller.Result{}, err
		}
	}
	return controller.Result{RequeueAfter: plan.RequeueAfter}, r.carryOut(ctx, j, plan)
}

// releaseOrphans removes the finalizer from pods whose job is gone, or was replaced by
// another of the same name.
func (r *reconciler) releaseOrphans(ctx context.Context, key controller.Key, j *batchv1.Job) error {
	var orphans []*corev1.Pod
	for _, p := range r.pods.Cache.ByIndex(byJob, key.String()) {
		if ref := metav1.GetControllerOfNoCopy(p); j == nil || j.UID != ref.UID {
			orphans = append(orphans, p)
		}
	}
	if len(orphans) == 0 {
		return nil
	}
	// The cache of jobs may be behind that of pods.
	live, err := r.jobs.Get(ctx, key.Namespace, key.Name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err == nil {
		orphans = slices.DeleteFunc(orphans, func(p *corev1.Pod) bool { return metav1.GetControllerOfNoCopy(p).UID == live.UID })
	}
	return r.release(ctx, key, orphans)
}

// carryOut writes a plan. The status is written before finalizers are removed, so that
// no finished pod is lost.
func (r *reconciler) carryOut(ctx context.Context, j *batchv1.Job, plan Actions) error {
	key := client.KeyOf(j)
	err := errors.Join(r.deleteLate(ctx, key, plan.Late), r.changePods(ctx, j, plan))
	if !reflect.DeepEqual(plan.Status, j.Status) && finishedCondition(&j.Status) == nil {
		next := j.DeepCopy()
		next.Status = plan.Status
		got, werr := r.jobs.UpdateStatus(ctx, next)
		if apierrors.IsNotFound(werr) {
			return err
		}
		if werr != nil {
			return errors.Join(err, fmt.Errorf("status: %w", werr))
		}
		r.jobWrites.Wrote(key, got.ResourceVersion)
	}
	for _, e := range plan.Events {
		if e.Warning {
			r.Events.Warning(ctx, j, e.Reason, "%s", e.Message)
		} else {
			r.Events.Normal(ctx, j, e.Reason, "%s", e.Message)
		}
	}
	return errors.Join(err, r.release(ctx, key, plan.Release))
}

// current returns [controller.ErrStale] if the server has other tracked pods of a job than
// pods. An earlier process may have recorded or released pods that the cache does not show
// as such yet, next to a newer job: counted again, or taken for released, they would be
// counted twice. It compares once for each job that an earlier process began.
func (r *reconciler) current(ctx context.Context, j *batchv1.Job, selector labels.Selector, pods []*corev1.Pod) error {
	key := client.KeyOf(j)
	r.mu.Lock()
	known := r.checked[key] == j.UID
	r.mu.Unlock()
	if known {
		return nil
	}
	cached := map[types.UID]bool{}
	for _, p := range pods {
		if tracked(p) {
			cached[p.UID] = true
		}
	}
	metadata := client.Metadata(r.Client, r.pods.Objects.Kind())
	for p, err := range metadata.All(ctx, client.ListOptions{Namespace: j.Namespace, LabelSelector: selector.String()}) {
		switch {
		case err != nil:
			return fmt.Errorf("list pods: %w", err)
		case !metav1.IsControlledBy(p, j) || !slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer):
		case !cached[p.UID]:
			return fmt.Errorf("%w: pod %s", controller.ErrStale, p.Name)
		default:
			delete(cached, p.UID)
		}
	}
	if len(cached) > 0 {
		return fmt.Errorf("%w: %d pods are gone or released", controller.ErrStale, len(cached))
	}
	r.setChecked(j)
	return nil
}

// setChecked records that the cache shows everything that earlier processes did to the pods
// of a job, or will before the next reconcile: that waits for this process's last write,
// which is later than theirs.
func (r *reconciler) setChecked(j *batchv1.Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checked[client.KeyOf(j)] = j.UID
}

// deleteLate deletes pods that have not changed since they were seen.
func (r *reconciler) deleteLate(ctx context.Context, key controller.Key, pods []*corev1.Pod) error {
	for _, p := range pods {
		err := r.pods.Objects.Delete(ctx, p.Namespace, p.Name, client.UID(p.UID), client.ResourceVersion(p.ResourceVersion))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete pod %s of finished job %s: %w", p.Name, key, err)
		}
	}
	return nil
}

func (r *reconciler) changePods(ctx context.Context, j *batchv1.Job, plan Actions) error {
	var (
		done podtemplate.Result
		err  error
	)
	switch {
	case len(plan.Delete) > 0:
		if plan.Forget {
			forget := slices.DeleteFunc(slices.Clone(plan.Delete), func(p *corev1.Pod) bool { return !tracked(p) })
			if err := r.release(ctx, client.KeyOf(j), forget); err != nil {
				return err
			}
		}
		done, err = podtemplate.Delete(ctx, r.Cluster, j, plan.Delete)
	case len(plan.Create) > 0:
		pods := make([]*corev1.Pod, len(plan.Create))
		for i, index := range plan.Create {
			pods[i] = newPod(j, index, plan.Replaces[index])
		}
		done, err = podtemplate.Create(ctx, r.Cluster, j, pods)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			err = nil
		}
	}
	for _, rv := range done.ResourceVersions {
		r.pods.Writes.Wrote(client.KeyOf(j), rv)
	}
	if len(done.ResourceVersions) > 0 {
		r.setChecked(j)
	}
	return err
}

// release removes the tracking finalizer from pods.
func (r *reconciler) release(ctx context.Context, key controller.Key, pods []*corev1.Pod) error {
	writes := make([]client.Write, len(pods))
	for i, p := range pods {
		patch := fmt.Sprintf(`{"metadata":{"uid":%q,"$deleteFromPrimitiveList/finalizers":[%q]}}`, p.UID, batchv1.JobTrackingFinalizer)
		writes[i] = client.PatchWrite[*corev1.Pod](p.Namespace, p.Name, types.StrategicMergePatchType, []byte(patch))
	}
	if len(writes) == 0 {
		return nil
	}
	results, err := r.Client.CommitQuietly(ctx, writes...)
	for i, res := range results {
		switch {
		case res.Err == nil:
			r.pods.Writes.Wrote(key, res.ResourceVersion)
		case apierrors.IsNotFound(res.Err), apierrors.IsConflict(res.Err):
			// It is gone; the cache will show it.
		case err == nil:
			err = fmt.Errorf("release pod %s: %w", pods[i].Name, res.Err)
		}
	}
	return err
}
