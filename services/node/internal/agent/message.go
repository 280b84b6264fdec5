package agent

import (
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/log"
)

// Bounds on a termination message: bytes of the file, and bytes and lines of the log when
// it is used instead. They are the kubelet's.
const (
	maxTermination      = 4096
	maxTerminationLog   = 2048
	maxTerminationLines = 80
)

// terminationMessage reads the message that an ended container left.
func terminationMessage(c *cri.Container) string {
	if c.MessageHostPath == "" {
		return ""
	}
	text := readHead(c.MessageHostPath, maxTermination)
	if text == "" && c.MessageMode == string(corev1.TerminationMessageFallbackToLogsOnError) && c.ExitCode != 0 {
		return log.Tail(c.LogPath, maxTerminationLines, maxTerminationLog)
	}
	return text
}

// readHead reads at most limit bytes from the start of a file that a container may have put
// there. It follows no symbolic link and reads neither a FIFO nor a device.
func readHead(name string, limit int) string {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	buf := make([]byte, limit)
	n, _ := io.ReadFull(f, buf)
	return strings.ToValidUTF8(string(buf[:n]), "�")
}
