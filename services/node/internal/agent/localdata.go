package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/client"
	"keelson.dev/services/node/internal/volume"
)

// LabelNode is the label of a PersistentVolume that names the node holding its data. A node
// may watch and release the volumes that name it.
const LabelNode = "keelson.dev/node"

// releaseRetry is the delay before removing a volume's data is tried again.
const releaseRetry = 5 * time.Second

// releaseVolumes removes the data of this node's local volumes that are being deleted, and
// then their finalizer.
func (a *Agent) releaseVolumes(ctx context.Context) error {
	volumes := client.NewCache(a.cfg.Client, client.CacheOptions[*corev1.PersistentVolume]{
		LabelSelector: LabelNode + "=" + a.cfg.Node,
		Transform: func(pv *corev1.PersistentVolume) *corev1.PersistentVolume {
			pv.ManagedFields = nil
			return pv
		},
	})
	wake := make(chan struct{}, 1)
	volumes.Subscribe(func(client.Event[*corev1.PersistentVolume]) {
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_ = volumes.Run(ctx)
	}()
	defer func() { <-watched }()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-retry.C:
		}
		for _, pv := range volumes.List() {
			if pv.DeletionTimestamp == nil || !slices.Contains(pv.Finalizers, volume.LocalDataFinalizer) {
				continue
			}
			if err := a.release(ctx, pv); err != nil && ctx.Err() == nil {
				a.log.WarnContext(ctx, "volume data was not removed", "volume", pv.Name, "error", err)
				retry.Reset(releaseRetry)
			}
		}
	}
}

// release removes a volume's directory and its finalizer.
func (a *Agent) release(ctx context.Context, pv *corev1.PersistentVolume) error {
	dir, err := localDir(pv)
	if err != nil {
		return err
	}
	if err := volume.RemoveAll(dir); err != nil {
		return err
	}
	out := pv.DeepCopy()
	out.Finalizers = slices.DeleteFunc(out.Finalizers, func(f string) bool { return f == volume.LocalDataFinalizer })
	_, err = client.For[*corev1.PersistentVolume](a.cfg.Client).Update(ctx, out)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or the watch is about to deliver its new state
	}
	if err == nil {
		a.log.InfoContext(ctx, "volume released", "volume", pv.Name, "path", dir)
	}
	return err
}

// provisioned is the prefix of the names of volumes that the provisioner creates.
const provisioned = "pvc-"

// localDir returns the directory of a volume that this node may remove: one that bears the
// volume's name, with the provisioner's prefix. So a PersistentVolume called ssh cannot
// have /etc/ssh removed.
func localDir(pv *corev1.PersistentVolume) (string, error) {
	if pv.Spec.Local == nil {
		return "", fmt.Errorf("persistentvolume %s: not a local volume", pv.Name)
	}
	dir := pv.Spec.Local.Path
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || filepath.Base(dir) != pv.Name || !strings.HasPrefix(pv.Name, provisioned) || strings.Count(dir, "/") < 2 {
		return "", fmt.Errorf("persistentvolume %s: path %q was not created by this node's provisioner", pv.Name, dir)
	}
	return dir, nil
}
