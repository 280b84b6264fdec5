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

// LabelNode on a PersistentVolume names the node that holds its data; a node may
// watch and release the volumes that name it.
const LabelNode = "keelson.dev/node"

// releaseRetry is how soon a volume is tried again whose data was not removed.
const releaseRetry = 5 * time.Second

// releaseVolumes removes the data of local volumes of this node that are being
// deleted, and lets their objects go.
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
				a.log.Warn("data of a volume was not removed", "volume", pv.Name, "error", err)
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
		return nil // it is gone, or the watch is about to bring how it is now
	}
	if err == nil {
		a.log.Info("volume released", "volume", pv.Name, "path", dir)
	}
	return err
}

// provisioned is how the names of the provisioner's volumes begin.
const provisioned = "pvc-"

// localDir is the directory of a volume, if it is one that this node may remove:
// one of the volume's own name, which is one of the provisioner's. Whoever makes a
// volume called ssh cannot have /etc/ssh removed.
func localDir(pv *corev1.PersistentVolume) (string, error) {
	if pv.Spec.Local == nil {
		return "", fmt.Errorf("persistentvolume %s: is not local", pv.Name)
	}
	dir := pv.Spec.Local.Path
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || filepath.Base(dir) != pv.Name || !strings.HasPrefix(pv.Name, provisioned) || strings.Count(dir, "/") < 2 {
		return "", fmt.Errorf("persistentvolume %s: path %q is not one that this node made", pv.Name, dir)
	}
	return dir, nil
}
