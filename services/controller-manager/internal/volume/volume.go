package volume

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

const volumeProtection = "kubernetes.io/pv-protection"

type volumes struct {
	*cluster.Cluster

	Claims  *client.Cache[*corev1.PersistentVolumeClaim]
	Volumes *client.Cache[*corev1.PersistentVolume]

	claims  client.Resource[*corev1.PersistentVolumeClaim]
	volumes client.Resource[*corev1.PersistentVolume]
}

// NewVolumes returns the controller of volumes: their phase, protection and reclaim.
func NewVolumes(s *cluster.Cluster) controller.Controller {
	r := &volumes{
		Cluster: s, Claims: cluster.Of[*corev1.PersistentVolumeClaim](s), Volumes: cluster.Of[*corev1.PersistentVolume](s),
		claims:  client.For[*corev1.PersistentVolumeClaim](s.Client),
		volumes: client.For[*corev1.PersistentVolume](s.Client),
	}
	return controller.Controller{
		Name: "persistentvolume", Workers: 4, Reconcile: r.reconcile,
		Sources: []controller.Source{
			controller.Objects(r.Volumes),
			controller.From(r.Claims, r.ofClaim),
		},
	}
}

func (r *volumes) ofClaim(ev client.Event[*corev1.PersistentVolumeClaim]) []controller.Key {
	var keys []controller.Key
	if ev.Object.Spec.VolumeName != "" {
		keys = append(keys, controller.Key{Name: ev.Object.Spec.VolumeName})
	}
	if ev.Type != client.Deleted {
		return keys
	}
	for _, v := range r.Volumes.List() {
		if refersTo(v, ev.Object) && v.Name != ev.Object.Spec.VolumeName {
			keys = append(keys, client.KeyOf(v))
		}
	}
	return keys
}

func (r *volumes) reconcile(ctx context.Context, key controller.Key) (controller.Result, error) {
	v, ok := r.Volumes.Get("", key.Name)
	if !ok {
		return controller.Result{}, nil
	}
	held, err := r.held(ctx, v)
	if err != nil {
		return controller.Result{}, err
	}
	if v.DeletionTimestamp != nil {
		switch {
		case held:
			return controller.Result{}, r.setPhase(ctx, v, corev1.VolumeBound)
		case v.Status.Phase == corev1.VolumeBound:
			// The event of this write comes back here.
			return controller.Result{}, r.setPhase(ctx, v, corev1.VolumeReleased)
		}
		return controller.Result{}, r.unprotect(ctx, v)
	}
	switch {
	case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == "":
		return controller.Result{}, r.setPhase(ctx, v, corev1.VolumeAvailable)
	case held:
		return controller.Result{}, r.setPhase(ctx, v, corev1.VolumeBound)
	}
	return controller.Result{}, r.reclaim(ctx, v)
}

// held reports whether the claim that a volume refers to exists. That it does not is
// only concluded from the server.
func (r *volumes) held(ctx context.Context, v *corev1.PersistentVolume) (bool, error) {
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return false, nil
	}
	if c, ok := r.Claims.Get(ref.Namespace, ref.Name); ok && c.UID == ref.UID {
		return true, nil
	}
	c, err := r.claims.Get(ctx, ref.Namespace, ref.Name)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("claim %s/%s of volume %s: %w", ref.Namespace, ref.Name, v.Name, err)
	}
	return c.UID == ref.UID, nil
}

func (r *volumes) unprotect(ctx context.Context, v *corev1.PersistentVolume) error {
	i := slices.Index(v.Finalizers, volumeProtection)
	if i < 0 {
		return nil
	}
	next := v.DeepCopy()
	next.Finalizers = slices.Delete(next.Finalizers, i, i+1)
	return ignorable("finalizer of volume "+v.Name, second(r.volumes.Update(ctx, next)))
}

// reclaim applies the reclaim policy to a released volume.
func (r *volumes) reclaim(ctx context.Context, v *corev1.PersistentVolume) error {
	if err := r.setPhase(ctx, v, corev1.VolumeReleased); err != nil {
		return err
	}
	if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		return nil
	}
	if v.Annotations[provisionedBy] != Provisioner {
		// Its own provisioner deletes it. A volume created by hand has none.
		if v.Annotations[provisionedBy] == "" {
			r.Events.Warning(ctx, v, "VolumeFailedDelete", "error getting deleter volume plugin for volume %q: no volume plugin matched", v.Name)
			return r.setPhase(ctx, v, corev1.VolumeFailed)
		}
		return nil
	}
	return ignorable("delete volume "+v.Name, r.volumes.Delete(ctx, "", v.Name, client.UID(v.UID)))
}

func (r *volumes) setPhase(ctx context.Context, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase) error {
	if v.Status.Phase == phase || v.Status.Phase == corev1.VolumeFailed && phase == corev1.VolumeReleased {
		return nil
	}
	next := v.DeepCopy()
	next.Status.Phase = phase
	return ignorable("status of volume "+v.Name, second(r.volumes.UpdateStatus(ctx, next)))
}

// NewDefaultClass returns the controller that creates the default storage class of a
// new cluster: once per term of leadership, and only if there is no class at all.
func NewDefaultClass(s *cluster.Cluster) controller.Controller {
	once := make(chan controller.Key, 1)
	once <- controller.Key{Name: DefaultClass().Name}
	return controller.Controller{
		Name: "default-storageclass", Workers: 1, Sources: []controller.Source{controller.Channel(once)},
		Reconcile: func(ctx context.Context, _ controller.Key) (controller.Result, error) {
			return controller.Result{}, ensure(ctx, s.Client)
		},
	}
}

func ensure(ctx context.Context, c *client.Client) error {
	classes := client.For[*storagev1.StorageClass](c)
	list, _, err := classes.List(ctx, client.ListOptions{Limit: 1})
	if err != nil || len(list) > 0 {
		return err
	}
	_, err = classes.Create(ctx, DefaultClass())
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
