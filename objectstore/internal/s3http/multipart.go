package s3http

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/objectstore"
)

// abortMax bounds an abort, which may begin when the caller's time is over.
const abortMax = 5 * time.Second

// Upload is a multipart upload of one object as a client library carries it out. Each method is one request, with the
// library's retries. Part is what the store answers to a part, and wants to see again in the end.
type Upload[Part any] interface {
	Begin(ctx context.Context) error
	Send(ctx context.Context, number int, body objectstore.Body) (Part, error) // parts count from 1; concurrent
	Complete(ctx context.Context, parts []Part) error                          // unless the object exists
	Abort(ctx context.Context) error
	Answer(err error) Answer
}

// PutMultipart puts the object of that name by an upload that was not begun yet. Its errors are those of
// [objectstore.Store.Put]. If the answer to the beginning is lost, nobody knows what to abort, and an upload is left.
func PutMultipart[Part any](ctx context.Context, upload Upload[Part], name string, body objectstore.Body) error {
	followed, _ := Follow(ctx)
	if err := upload.Begin(followed); err != nil {
		return stepError(ctx, "begin its upload", name, upload.Answer(err), err)
	}
	parts, err := sendParts(ctx, upload, name, body)
	doubtful := false
	if err == nil {
		doubtful, err = complete(ctx, upload, name, parts)
	}
	if err != nil && !doubtful {
		abort(ctx, upload)
	}
	return err
}

// sendParts sends all parts at once, a few as there are, and returns when the body is not used any more.
func sendParts[Part any](ctx context.Context, upload Upload[Part], name string, body objectstore.Body) ([]Part, error) {
	count := partsOf(body.Size)
	each := (body.Size + count - 1) / count
	parts := make([]Part, count)
	group, sending := errgroup.WithContext(ctx)
	for i := range count {
		group.Go(func() error {
			followed, _ := Follow(sending) // so that the body is free when the attempt is over
			off := i * each
			part, err := upload.Send(followed, int(i+1), body.Range(off, min(each, body.Size-off)))
			if err != nil {
				return stepError(ctx, fmt.Sprintf("send part %d of %d", i+1, count), name, upload.Answer(err), err)
			}
			parts[i] = part
			return nil
		})
	}
	return parts, group.Wait()
}

// complete makes the parts an object. It is believed at its first word only: versitygw says that an attempt succeeded
// while one before it is under way, and may refuse that one. If it is doubtful, an attempt may be under way still.
func complete[Part any](ctx context.Context, upload Upload[Part], name string, parts []Part) (doubtful bool, err error) {
	followed, trail := Follow(ctx)
	err = upload.Complete(followed, parts)
	_, unsure, taken := trail.outcome()
	switch {
	case err != nil:
		return unsure || taken, trail.WriteError(ctx, "put", name, upload.Answer(err), err)
	case unsure:
		return true, fmt.Errorf("put %s: its upload was completed twice: %w", name, objectstore.ErrUnknownOutcome)
	}
	return false, nil
}

// abort removes what was uploaded, if it can: else it is one of those that are left. It must not be called while a
// completion may be under way, into which MinIO lets it break.
func abort[Part any](ctx context.Context, upload Upload[Part]) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortMax)
	defer cancel()
	_ = upload.Abort(ctx) // as above
}

// partsOf returns how many parts an object of that size has.
func partsOf(size int64) int64 {
	return max(1, (size+objectstore.PartBytesMax-1)/objectstore.PartBytesMax)
}

// PutRequests returns how many requests a Put sends, if multipart uploads are in use or not.
func PutRequests(multipart bool, size int64) int64 {
	if !multipart || size <= objectstore.PartBytesMax {
		return 1
	}
	return partsOf(size) + 2
}
