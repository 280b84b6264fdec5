// Package nftwatch detects, through the kernel's notifications, when another program
// changes an nftables table.
//
// It must never change a table.
package nftwatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer is large enough for the notifications of a large transaction of our own, in
// bytes.
const receiveBuffer = 4 << 20

// datagram is larger than any notification datagram of the kernel, in bytes.
const datagram = 1 << 16

// Watch detects transactions of other programs on one table.
//
// A notification is queued on the socket before the nft program that caused it exits. So
// everything that is queued when one of our transactions has finished is ours, and
// everything that arrives at another time is foreign. (A foreign transaction within the
// milliseconds of one of ours is mistaken for ours, and repaired at the next foreign
// change.)
type Watch struct {
	// Foreign receives a value after one or more foreign transactions.
	Foreign <-chan struct{}
	foreign chan struct{}
	socket  *os.File
	conn    syscall.RawConn
	table   string
	wg      sync.WaitGroup
	// mu is held by the reader while it receives and evaluates notifications, and by Own
	// and Repair while a transaction of ours runs and its notifications are drained.
	mu sync.Mutex
}

// Table watches a table of the family ip in the network namespace of the calling thread.
func Table(table string) (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	foreign := make(chan struct{}, 1)
	w := &Watch{Foreign: foreign, foreign: foreign, socket: os.NewFile(uintptr(fd), "nftables notifications"), table: table}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		w.socket.Close()
		return nil, fmt.Errorf("receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		w.socket.Close()
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	if w.conn, err = w.socket.SyscallConn(); err != nil {
		w.socket.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	w.wg.Go(w.read)
	return w, nil
}

// Own runs a transaction of ours and discards its notifications.
func (w *Watch) Own(transaction func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	transaction()
	w.forget()
}

// Repair is Own for a transaction that rebuilds the table. The transaction undoes earlier
// foreign changes, so pending reports of them are discarded as well. A single foreign
// transaction may arrive in several datagrams and would otherwise be repaired several
// times.
func (w *Watch) Repair(transaction func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget()
	select {
	case <-w.foreign:
	default:
	}
	transaction()
	w.forget()
}

// forget discards the queued notifications. The caller holds mu.
func (w *Watch) forget() {
	buf := make([]byte, datagram)
	_ = w.conn.Control(func(fd uintptr) { w.drain(int(fd), buf) })
}

// read receives notifications until the socket is closed.
func (w *Watch) read() {
	buf := make([]byte, datagram)
	for {
		err := w.conn.Read(func(fd uintptr) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !w.drain(int(fd), buf) {
				return false
			}
			select {
			case w.foreign <- struct{}{}:
			default:
			}
			return true
		})
		if err != nil {
			return
		}
	}
}

// drain receives the queued notifications and reports whether any of them concerns the
// table.
func (w *Watch) drain(fd int, buf []byte) bool {
	touched := false
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case err == nil:
			touched = touched || w.touches(buf[:n])
		case errors.Is(err, unix.ENOBUFS):
			touched = true // notifications were lost: assume that the table was changed
		case errors.Is(err, unix.EINTR):
		default:
			return touched
		}
	}
}

// touches reports whether a datagram contains a change of the table.
func (w *Watch) touches(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint16(b[4:])
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false
		}
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES && kind&0xff != unix.NFT_MSG_NEWGEN && tableOf(b[unix.NLMSG_HDRLEN:size]) == w.table {
			return true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false
}

// tableOf returns the table's name, which is attribute 1 of every kind of object, from a
// message that starts with a struct nfgenmsg (4 bytes: family, version, resource ID).
// Tables of other families with the same name are not ours.
func tableOf(b []byte) string {
	const genmsg, attrHeader, tableAttr = 4, 4, 1
	if len(b) < genmsg || b[0] != unix.NFPROTO_IPV4 {
		return ""
	}
	b = b[genmsg:]
	for len(b) >= attrHeader {
		size := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) & 0x3fff
		if size < attrHeader || size > len(b) {
			return ""
		}
		if kind == tableAttr {
			return unix.ByteSliceToString(b[attrHeader:size])
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return ""
}

// Close stops the watch.
func (w *Watch) Close() {
	w.socket.Close()
	w.wg.Wait()
}
