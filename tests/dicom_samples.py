"""Tiny synthetic DICOM series, written as a scanner would, with names in them that must not come through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

PERSON = "Doe^Jane"
PATIENT_ID = "MRN-4711"
COMMENT = "called Jane Doe"


def write_series(folder: Path, voxels: np.ndarray, *, number: int = 3, protocol: str = "t1_mprage_sag") -> None:
    """Writes `x y z` voxels (columns, rows, slices) as axial slices of 2 x 2 x 3 mm, the first slice lowest."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(voxels.shape[2]):
        data = _dataset(voxels[:, :, index], number, protocol)
        data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, study, frame
        data.InstanceNumber = index + 1
        data.ImagePositionPatient = [-10.0, -12.0, 3.0 * index]
        data.SliceLocation = 3.0 * index
        pydicom.dcmwrite(folder / f"IM{number:02d}{index:04d}", data, enforce_file_format=True)


def _dataset(plane: np.ndarray, number: int, protocol: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = PERSON, PATIENT_ID, "19700101"
    data.ImageComments = COMMENT
    data.Modality, data.Manufacturer = "MR", "SIEMENS"
    data.SeriesNumber, data.AcquisitionNumber = number, 1
    data.ProtocolName = data.SeriesDescription = protocol
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = "20200102"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = "101112.0"
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.ScanningSequence, data.SequenceVariant, data.MRAcquisitionType = "GR", "SP", "3D"
    data.RepetitionTime, data.EchoTime, data.FlipAngle = 2000.0, 3.0, 9.0
    data.MagneticFieldStrength = 3.0
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = [2.0, 2.0], 3.0, 3.0
    data.Columns, data.Rows = plane.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = np.ascontiguousarray(plane.T, dtype="<u2").tobytes()
    return data
