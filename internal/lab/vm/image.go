package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// plainImage is the kernel without its decompressor, in the folder of the
// package. To decompress it in the emulator takes longer than the rest of the
// boot.
const plainImage = "boot/vmlinux"

// The header of a kernel image for x86: Documentation/arch/x86/boot.rst.
const (
	headerSetupSects    = 0x1f1 // sectors of 512 bytes after the first, before the protected-mode kernel
	headerMagic         = 0x202
	headerPayloadOffset = 0x248
	headerPayloadLength = 0x24c
)

// xzMagic begins a file of xz.
var xzMagic = []byte("\xfd7zXZ\x00")

// extractImage writes plainImage below root, if the kernel is compressed with
// xz; the other compressions of kernels are quick.
func extractImage(ctx context.Context, root string) error {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("find kernel in %s: %d images in boot", root, len(images))
	}
	image, err := os.ReadFile(images[0])
	if err != nil {
		return fmt.Errorf("read kernel: %w", err)
	}
	payload, err := imagePayload(image)
	if err != nil {
		return fmt.Errorf("read kernel %s: %w", images[0], err)
	}
	if !bytes.HasPrefix(payload, xzMagic) {
		return nil
	}
	compressed := filepath.Join(root, plainImage+".xz")
	if err := os.WriteFile(compressed, payload, 0o644); err != nil {
		return fmt.Errorf("write kernel: %w", err)
	}
	_, err = run(ctx, "", "xz", "--decompress", "--single-stream", compressed)
	return err
}

// imagePayload is the compressed kernel in an image.
func imagePayload(image []byte) ([]byte, error) {
	if len(image) < headerPayloadLength+4 || !bytes.Equal(image[headerMagic:headerMagic+4], []byte("HdrS")) {
		return nil, errors.New("no header of a Linux kernel")
	}
	start := (int(image[headerSetupSects]) + 1) * 512
	offset := int(binary.LittleEndian.Uint32(image[headerPayloadOffset:]))
	length := int(binary.LittleEndian.Uint32(image[headerPayloadLength:]))
	if start+offset+length > len(image) {
		return nil, errors.New("payload is longer than the image")
	}
	return image[start+offset:][:length], nil
}
