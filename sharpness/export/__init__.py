"""Records in formats of other programs: CSV tables, and planes for ParaView."""

from sharpness.export.files import FORMATS as FORMATS
from sharpness.export.files import export_file as export_file
from sharpness.export.paraview import image_data as image_data
from sharpness.export.paraview import surface as surface
from sharpness.export.rows import Rows as Rows
from sharpness.export.rows import tables as tables
